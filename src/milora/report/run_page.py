"""A run directory → one self-contained HTML page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from milora.evaluation.benchmarks import GROUPS
from milora.evaluation.evaluate import find_scores, locate_samples
from milora.evaluation.forgetting import FORGETTING
from milora.evaluation.held_out import locate_answers
from milora.evaluation.scores import INTERVALS, Scores, format_metric
from milora.evaluation.target import Target, target_of_run
from milora.method.decomposition import first_component
from milora.method.files import write_text
from milora.method.initialization import InitializationReport
from milora.method.options import Export
from milora.models.card import say_how_to_load
from milora.models.vision import takes_pictures
from milora.report.changes import find_change, say_headline
from milora.report.facts import list_costs, list_differences, list_training
from milora.report.figures import draw_loss, draw_rate, draw_spectra
from milora.report.outcome import describe_run, say_evidence
from milora.report.pages import render
from milora.report.samples import Reading, collect, read_task
from milora.report.seeing import say_seeing
from milora.run.directory import RunDirectory, locate_export
from milora.run.environment import Environment
from milora.run.records import Spectra, TrainingRecord
from milora.run.sections import AdapterSection


def write_report(run: RunDirectory, base: Target | None = None) -> Path:
    """Write the page of a trained run from what its directory contains; return the file.

    `base` is where the base's scores are, if they are not the run's own: a comparison scores the base once.
    """
    training = run.read(TrainingRecord)
    target = target_of_run(run)
    # Arms of a comparison may have different models.
    untrained = base if base and base.model == target.base.model else target.base
    before, after = (_find(one, run) for one in (untrained, target))
    readings = {task: _read(task, before, run, untrained, target) for task in after if has_samples(task)}
    answers = {"base": locate_answers(untrained), "trained": locate_answers(target)}
    if all(folder.samples.is_file() for folder in answers.values()):
        readings["held-out rows"] = read_task("held-out rows", answers)
    changes = [find_change(task, before.get(task), after[task], readings.get(task, [])) for task in after]
    scored = [change for change in changes if change.task != FORGETTING]
    report = run.read(InitializationReport) if run.has(InitializationReport) else InitializationReport({}, 0.0)
    environment = run.read(Environment)
    page = render(
        "run.html.jinja",
        recipe=run.recipe,
        run=run.path.name,
        what=describe_run(run.recipe),
        headline=say_headline(scored, training),
        evidence=[*say_evidence(run.recipe, training, bool(scored)), *say_seeing(readings)],
        intervals=INTERVALS,
        format_metric=format_metric,
        changes=scored,
        forgetting=after.get(FORGETTING),
        forgetting_of_base=before.get(FORGETTING),
        training=training,
        warnings=report.warnings,
        charts=[chart for chart in (draw_loss(training), draw_rate(training)) if chart],
        spectra=_draw_spectra(run, report),
        readings=collect([found for found in readings.values() if found]),
        differences=list_differences(run.recipe),
        training_facts=list_training(run.recipe, training),
        costs=list_costs(training, environment),
        recipe_yaml=run.recipe.to_yaml(every_key=True),
        environment=environment,
        **_say_where(run),
    )
    write_text(run.report, page)
    return run.report


def _find(target: Target, run: RunDirectory) -> dict[str, Scores]:
    return {scores.task: scores for scores in find_scores(target, run.recipe.evaluation)}


def has_samples(task: str) -> bool:
    """Whether a task has questions and answers of its own."""
    return task not in GROUPS and task != FORGETTING


def _read(
    task: str, before: Mapping[str, Scores], run: RunDirectory, base: Target, trained: Target
) -> Sequence[Reading]:
    targets = {"base": base, "trained": trained} if task in before else {"trained": trained}
    found = {who: locate_samples(target, task, run.recipe.evaluation) for who, target in targets.items()}
    return read_task(task, {who: folder for who, (folder,) in found.items()})


def _say_where(run: RunDirectory) -> dict[str, Any]:
    """Where the exported adapter or model is, and the lines that load it; None where nothing is exported yet."""
    form: Export = "merged" if run.recipe.adapter.method == "full" else "lora"
    folder = locate_export(run.path, form)
    exported = str(folder) if folder.is_dir() else None
    load = None
    if exported:
        load = say_how_to_load(run.recipe.model, form, exported, pictures=takes_pictures(run.recipe.model))
    return {"exported": exported, "how_to_load": load, "form": form, "path": run.path}


def _draw_spectra(run: RunDirectory, report: InitializationReport) -> Any:
    if not run.has(Spectra):
        return None
    spectra = run.read(Spectra).weights
    return draw_spectra(spectra, _find_components(spectra, report, run.recipe.adapter))


def _find_components(
    spectra: dict[str, list[float]], report: InitializationReport, adapter: AdapterSection
) -> dict[str, slice]:
    """Where in its spectrum each adapted weight's components are: not of random ones, nor of a start that is PEFT's."""
    ranks = {name.removeprefix("base_model.model."): layer.rank for name, layer in report.layers.items()}
    found = {}
    for name, values in spectra.items():
        if name in ranks:
            first = first_component(adapter.components, ranks[name], len(values))
            if first is not None:
                found[name] = slice(first, first + ranks[name])
    return found
