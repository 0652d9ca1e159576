"""A run directory → one self-contained HTML page."""

from importlib.resources import files
from pathlib import Path

from jinja2 import Environment

from milora.comparison.figures import draw_loss, draw_scores, draw_spectra
from milora.comparison.scores import read_samples, read_scores
from milora.run.directory import RunDirectory
from milora.run.files import write_text


def write_report(run: RunDirectory) -> Path:
    """Write `report.html`: scores, loss, spectra, samples, costs and what the run is no evidence of."""
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        files("milora").joinpath("comparison", "report.html.jinja").read_text(encoding="utf-8")
    )
    folder = run.path / "evaluation"
    tasks, training = read_scores(folder, complete=True), run.read("training.json")
    warnings = []
    if run.recipe.adapter.method == "milora":
        warnings = run.read("initialization.json")["warnings"]
    page = template.render(
        recipe=run.recipe,
        recipe_yaml=run.recipe.to_yaml(),
        environment=run.read("environment.json"),
        training=training,
        tasks=tasks,
        warnings=warnings,
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
