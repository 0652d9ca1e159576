"""A run directory → one self-contained HTML page."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from milora.report.figures import draw_loss, draw_scores, draw_spectra
from milora.evaluation.scores import read_samples, read_scores
from milora.evaluation.forgetting import FORGETTING
from milora.run.directory import RunDirectory
from milora.method.files import write_text


def write_report(run: RunDirectory) -> Path:
    """Write `report.html`: scores, loss, spectra, samples, costs and what the run is no evidence of."""
    folder = run.path / "evaluation"
    tasks, training = read_scores(folder, complete=True), run.read("training.json")
    warnings = []
    if run.recipe.adapter.method == "milora":
        warnings = run.read("initialization.json")["warnings"]
    page = render(
        "run.html.jinja",
        recipe=run.recipe,
        recipe_yaml=run.recipe.to_yaml(),
        environment=run.read("environment.json"),
        training=training,
        tasks=tasks,
        warnings=warnings,
        forgetting=run.read(FORGETTING) if (run.path / FORGETTING).is_file() else None,
        samples={
            task: read_samples(folder, task, 5) for task, found in tasks.items() if "settings" in found["trained"]
        },
        loss=draw_loss(training["losses"]),
        scores=draw_scores(tasks) if tasks else None,
        spectra=draw_spectra(run.read("spectra.json"), run.recipe.adapter.rank),
    )
    path = run.path / "report.html"
    write_text(path, page)
    return path


def render(template: str, **content: Any) -> str:
    """Return a self-contained page of one of this folder's templates."""
    environment = Environment(
        loader=PackageLoader("milora", "report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(**content)
