"""The scores in a run directory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from milora.run.directory import RunDirectory
from milora.run.files import read_json, read_lines


@dataclass(frozen=True, slots=True)
class TaskScores:
    """One task before and after: the content of both scores.json."""

    name: str
    base: dict[str, Any]
    trained: dict[str, Any]


def read_scores(run: RunDirectory) -> list[TaskScores]:
    """Return the tasks that are scored both before and after training."""
    folder = run.path / "evaluation"
    return [
        TaskScores(file.parent.name, read_json(folder / "base" / file.parent.name / "scores.json"), read_json(file))
        for file in sorted(folder.glob("trained/*/scores.json"))
        if (folder / "base" / file.parent.name / "scores.json").is_file()
    ]


def read_samples(run: RunDirectory, task: str, count: int) -> list[dict[str, Any]]:
    """Return the first samples of a task, each with the base's and the trained model's completion."""
    base, trained = (_samples(run.path / "evaluation" / who / task) for who in ("base", "trained"))
    return [
        {**after, "base_completion": before["completion"], "base_correct": before["correct"]}
        for before, after in list(zip(base, trained, strict=True))[:count]
    ]


def format_table(tasks: list[TaskScores]) -> str:
    """A plain table: accuracy ± standard error in percent, before and after."""
    lines = [f"{'task':<14}{'n':>6}{'base':>16}{'trained':>16}"]
    for task in tasks:
        lines.append(f"{task.name:<14}{task.trained['count']:>6}{_percent(task.base):>16}{_percent(task.trained):>16}")
    return "\n".join(lines)


def _percent(score: dict[str, Any]) -> str:
    return f"{100 * score['accuracy']:.1f} ± {100 * score['standard_error']:.1f} %"


def _samples(folder: Path) -> list[dict[str, Any]]:
    return read_lines(folder / "samples.jsonl")
