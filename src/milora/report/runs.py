"""A folder of run directories → a table: what each is, how far it is, and what came of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from milora.evaluation.scores import Scores, format_metric
from milora.method.errors import MiloraError
from milora.run.directory import EVERYTHING, RunDirectory, is_run, open_run, step_of
from milora.run.records import Divergence, TrainingRecord


@dataclass(frozen=True, slots=True)
class Listed:
    """One run: its folder's name, its state, its settings by dotted key if they can be read, and its results."""

    name: str
    state: str
    settings: dict[str, Any] | None
    held_out_loss: str
    scores: str


def list_runs(folder: Path) -> list[Listed]:
    """Return the run directories of a folder, by name.

    Raises:
        MiloraError: the folder contains none.
    """
    paths = sorted(path for path in folder.glob("*") if is_run(path))
    if not paths:
        raise MiloraError(f"{folder} contains no run directory", "name another folder, or start a run with milora run")
    return [_describe(path) for path in paths]


def format_runs(runs: Sequence[Listed]) -> str:
    """A plain table; of the settings only those in which runs differ."""
    known = [run.settings for run in runs if run.settings is not None]
    keys = {key for settings in known for key in settings}
    differing = sorted(key for key in keys if len({str(settings.get(key)) for settings in known}) > 1)
    rows = [("run", "state", "held-out loss", "scores", "what differs")]
    rows += [(run.name, run.state, run.held_out_loss, run.scores, _say(run.settings or {}, differing)) for run in runs]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _describe(path: Path) -> Listed:
    try:
        return _read(open_run(path, EVERYTHING))  # which runs nothing
    except MiloraError as error:
        return Listed(path.name, "not readable", None, "–", error.message)


def _read(run: RunDirectory) -> Listed:
    loss = "–"
    if run.is_trained and (losses := run.read(TrainingRecord).held_out_loss):
        loss = f"{losses[0]:.3f} → {losses[1]:.3f}"
    settings = _flatten(run.recipe.model_dump(exclude={"name", "description"}, exclude_defaults=True))
    return Listed(run.path.name, _state(run), settings, loss, _say_scores(run))


def _state(run: RunDirectory) -> str:
    if run.is_trained:
        return "reported" if run.report.is_file() else "trained"
    if run.is_diverged:
        found = run.read(Divergence)
        return f"failed: diverged at step {found.step}, at learning rate {found.learning_rate:g}"
    checkpoint = run.last_checkpoint()
    return f"at step {step_of(checkpoint)}" if checkpoint else "started"


def _say_scores(run: RunDirectory) -> str:
    found = [folder.read(Scores) for folder in run.score_folders("trained") if folder.has(Scores)]
    said = [f"{scores.task} {format_metric(scores.headline, scores.unit)}, n = {scores.count}" for scores in found]
    return "; ".join(said) or "–"


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _say(settings: Mapping[str, Any], keys: Sequence[str]) -> str:
    return " ".join(f"{key}={settings[key]}" for key in keys if key in settings)
