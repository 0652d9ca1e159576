"""A folder of run directories → a table: what each is, how far it is, what came of it, and how it goes on."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from milora.evaluation.scores import Scores, format_metric
from milora.method.errors import MiloraError
from milora.report.facts import flatten, say_seconds
from milora.run.directory import EVERYTHING, RECIPE, RunDirectory, is_run, open_run, step_of
from milora.run.records import Divergence, TrainingRecord

COLUMNS = ("run", "state", "rate", "seed", "time", "held-out loss", "scores", "what differs", "next")
IN_COLUMNS = ("training.learning_rate", "seed")


@dataclass(frozen=True, slots=True)
class Listed:
    """One run: its state, its settings by dotted key, and its results, as far as they are there.

    `settings` are those that differ from the defaults. `next` is the command that continues the run, or, if all is
    done, its report.
    """

    run: str
    path: Path
    state: str
    next: str
    settings: dict[str, Any] | None = None
    learning_rate: float | None = None
    seed: int | None = None
    seconds: float | None = None
    held_out_loss: tuple[float, float] | None = None
    scores: dict[str, Scores] = field(default_factory=dict)


def list_runs(folder: Path) -> list[Listed]:
    """Return the run directories of a folder, by name.

    Raises:
        MiloraError: the folder contains none.
    """
    paths = sorted(path for path in folder.glob("*") if is_run(path))
    if not paths:
        raise MiloraError(f"{folder} contains no run directory", "name another folder, or start a run with milora run")
    return [_describe(path) for path in paths]


def list_these(paths: Sequence[Path]) -> list[Listed]:
    """Return what these run directories contain.

    Raises:
        MiloraError: one of them is not a run directory, or not of this version.
    """
    for path in paths:
        open_run(path, EVERYTHING)
    return [_describe(path) for path in paths]


def _describe(path: Path) -> Listed:
    try:
        run = open_run(path, EVERYTHING)  # which runs nothing
    except MiloraError as error:
        return Listed(path.name, path, f"not readable: {error.message}", error.hint)
    training = run.read(TrainingRecord) if run.is_trained else None
    return Listed(
        path.name,
        path,
        _state(run),
        _say_next(run),
        flatten(run.recipe.model_dump(exclude={"name", "description", "parent"}, exclude_defaults=True)),
        run.recipe.training.learning_rate,
        run.recipe.seed,
        training.seconds_per_step * training.steps if training else None,  # of a resumed run, too
        training.held_out_loss if training else None,
        {scores.task: scores for scores in _read_scores(run)},
    )


def format_runs(runs: Sequence[Listed]) -> str:
    """A plain table; of the settings only those in which runs differ."""
    known = [run.settings for run in runs if run.settings is not None]
    keys = {key for settings in known for key in settings}.difference(IN_COLUMNS)
    differing = sorted(key for key in keys if len({str(settings.get(key)) for settings in known}) > 1)
    rows: list[Sequence[str]] = [COLUMNS]
    for run in runs:
        differs = (
            " ".join(f"{key}={run.settings[key]}" for key in differing if key in run.settings) if run.settings else ""
        )
        rate, seed = say_number(run.learning_rate), say_number(run.seed)
        rows.append((run.run, run.state, rate, seed, say_time(run), say_loss(run), say_scores(run), differs, run.next))
    return format_columns(rows)


def format_columns(rows: Sequence[Sequence[str]]) -> str:
    """A plain table whose columns are as wide as what they contain."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def say_number(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


def say_time(run: Listed) -> str:
    return "–" if run.seconds is None else say_seconds(run.seconds)


def say_loss(run: Listed) -> str:
    return f"{run.held_out_loss[0]:.3f} → {run.held_out_loss[1]:.3f}" if run.held_out_loss else "–"


def say_scores(run: Listed) -> str:
    return "; ".join(f"{task} {say_score(scores)}" for task, scores in run.scores.items()) or "–"


def say_score(scores: Scores) -> str:
    return f"{format_metric(scores.headline, scores.unit)}, n = {scores.count}"


def _state(run: RunDirectory) -> str:
    if run.is_trained:
        return "reported" if run.report.is_file() else "trained"
    if run.is_diverged:
        found = run.read(Divergence)
        return f"failed: diverged at step {found.step}, at learning rate {found.learning_rate:g}"
    checkpoint = run.last_checkpoint()
    return f"at step {step_of(checkpoint)}" if checkpoint else "started"


def _say_next(run: RunDirectory) -> str:
    """A run whose training diverged would diverge again: what goes on is another run, at a third of the rate."""
    if run.is_trained and run.report.is_file():
        return str(run.report)
    if run.is_diverged:
        lower = f"training.learning_rate={run.recipe.training.learning_rate / 3:.1g}"
        return f"milora run {run.path / RECIPE} {lower}"
    return f"milora run {run.path}"


def _read_scores(run: RunDirectory) -> list[Scores]:
    return [folder.read(Scores) for folder in run.score_folders("trained") if folder.has(Scores)]
