"""A run directory → one self-contained HTML page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment as Templates
from jinja2 import PackageLoader

from milora.evaluation.benchmarks import GROUPS
from milora.evaluation.evaluate import locate_samples
from milora.evaluation.forgetting import FORGETTING
from milora.evaluation.scores import INTERVALS, Sample, Scores, format_metric, read_samples
from milora.evaluation.target import target_of_run
from milora.method.files import write_text
from milora.method.initialization import InitializationReport
from milora.report.figures import draw_loss, draw_scores, draw_spectra
from milora.report.outcome import describe_run, say_evidence
from milora.run.directory import RunDirectory
from milora.run.environment import Environment
from milora.run.records import Spectra, TrainingRecord
from milora.run.sections import AdapterSection

SHOWN = 5  # samples of each task


@dataclass(frozen=True, slots=True)
class Pair:
    """One item before and after training, and whether each is right by the headline's grade, None without one."""

    base: Sample
    trained: Sample
    base_is_right: bool | None
    trained_is_right: bool | None


def write_report(run: RunDirectory, found: Sequence[Scores], how_to_load: str) -> Path:
    """Write the run's page: scores, loss, spectra, samples, costs, and what the run is not evidence of.

    `found` are the base's and the trained model's scores, `how_to_load` the lines of Python that load the export.
    """
    training = run.read(TrainingRecord)
    base = {scores.task: scores for scores in found if scores.who == "base"}
    trained = {scores.task: scores for scores in found if scores.who == "trained"}
    tasks = {task: (base[task], trained[task]) for task in trained if task in base}
    shares = {task: both for task, both in tasks.items() if both[1].unit == "share"}
    report = run.read(InitializationReport) if run.has(InitializationReport) else InitializationReport({}, 0.0)
    spectra = run.read(Spectra).weights
    page = render(
        "run.html.jinja",
        recipe=run.recipe,
        run=run.path.name,
        what=describe_run(run.recipe),
        evidence=say_evidence(run.recipe, training),
        intervals=INTERVALS,
        how_to_load=how_to_load,
        format_metric=format_metric,
        recipe_yaml=run.recipe.to_yaml(every_key=True),
        environment=run.read(Environment),
        training=training,
        tasks=tasks,
        warnings=report.warnings,
        forgetting=trained.get(FORGETTING),
        samples={task: _pair_samples(run, *both) for task, both in tasks.items() if task not in (*GROUPS, FORGETTING)},
        loss=draw_loss(training.losses),
        scores=draw_scores(shares) if shares else None,
        spectra=draw_spectra(spectra, _find_components(spectra, report, run.recipe.adapter)),
    )
    write_text(run.report, page)
    return run.report


def _find_components(
    spectra: dict[str, list[float]], report: InitializationReport, adapter: AdapterSection
) -> dict[str, slice]:
    """Where in its spectrum each adapted weight's components are: not of random ones, nor of a start that is PEFT's."""
    ranks = {name.removeprefix("base_model.model."): layer.rank for name, layer in report.layers.items()}
    found = {}
    for name, values in spectra.items():
        rank = ranks.get(name)
        first = {"minor": len(values) - (rank or 0), "principal": 0, "middle": (len(values) - (rank or 0)) // 2}
        if rank is not None and adapter.components in first:
            found[name] = slice(first[adapter.components], first[adapter.components] + rank)
    return found


def _pair_samples(run: RunDirectory, base: Scores, trained: Scores) -> list[Pair]:
    target, section = target_of_run(run), run.recipe.evaluation
    (before,), (after,) = (locate_samples(one, trained.task, section) for one in (target.base, target))
    return [
        Pair(one, other, _is_right(one, base), _is_right(other, trained))
        for one, other in list(zip(read_samples(before), read_samples(after), strict=True))[:SHOWN]
    ]


def _is_right(sample: Sample, scores: Scores) -> bool | None:
    """None for a task whose score is not a grade of a sample, or a grade that is not right or wrong."""
    grade = sample.grades.get(scores.primary)
    return None if grade is None or scores.unit != "share" or grade.score not in (0, 1) else grade.score == 1


def render(template: str, **content: Any) -> str:
    """Return a self-contained page of one of this folder's templates."""
    templates = Templates(
        loader=PackageLoader("milora", "report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return templates.get_template(template).render(**content)
