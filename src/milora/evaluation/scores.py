"""The scores and samples that evaluations wrote."""

from pathlib import Path
from typing import Any

from milora.method.files import read_json, read_lines
from milora.data.sets import COMMONSENSE

AVERAGE = "average"
Scores = dict[str, dict[str, dict[str, Any]]]


def read_scores(folder: Path, *, complete: bool = False) -> Scores:
    """Return {task: {who: scores.json}} of an evaluation folder; `complete`: of tasks with base and trained only.

    Where all eight commonsense sets are scored, their `average` is one more task.
    """
    scores: Scores = {}
    for file in sorted(folder.glob("*/*/scores.json")):
        scores.setdefault(file.parent.name, {})[file.parent.parent.name] = read_json(file)
    for who in {who for task in scores.values() for who in task}:
        eight = [scores[name][who] for name in COMMONSENSE if who in scores.get(name, {})]
        if len(eight) == len(COMMONSENSE):
            scores.setdefault(AVERAGE, {})[who] = _average(eight)
    return {task: found for task, found in scores.items() if not complete or {"base", "trained"} <= found.keys()}


def _average(scores: list[dict[str, Any]]) -> dict[str, Any]:
    """The unweighted mean over sets, as in the paper's table 1; errors of independent sets add in squares."""

    def mean(parts: list[dict[str, float]]) -> dict[str, float]:
        return {
            "accuracy": sum(part["accuracy"] for part in parts) / len(parts),
            "standard_error": sum(part["standard_error"] ** 2 for part in parts) ** 0.5 / len(parts),
        }

    return {
        **mean(scores),
        "official": mean([score["official"] for score in scores]),
        "count": sum(score["count"] for score in scores),
        "no_answer": sum(score["no_answer"] for score in scores),
        "differ": sum(score["differ"] for score in scores),
    }


def read_samples(folder: Path, task: str, count: int) -> list[dict[str, Any]]:
    """Return the first samples of a task, each with the base's and the trained model's completion."""
    base, trained = (read_lines(folder / who / task / "samples.jsonl") for who in ("base", "trained"))
    return [
        {**after, "base_completion": before["completion"], "base_correct": before["correct"]}
        for before, after in list(zip(base, trained, strict=True))[:count]
    ]


def read_verdicts(folder: Path, task: str) -> list[float]:
    """Return the trained model's score on every item of a task, empty where the task scores no single items.

    Those of `average` are weighted so that their mean is the mean over the eight sets.
    """
    if task == AVERAGE:
        sets = [read_verdicts(folder, name) for name in COMMONSENSE]
        total = sum(map(len, sets))
        return [verdict * total / (len(sets) * len(found)) for found in sets for verdict in found]
    metric = read_json(folder / "trained" / task / "scores.json").get("metric", "correct")
    verdicts = [sample.get(metric) for sample in read_lines(folder / "trained" / task / "samples.jsonl")]
    return [float(verdict) for verdict in verdicts if isinstance(verdict, (bool, int, float))]


def format_table(scores: Scores) -> str:
    """A plain table: accuracy ± standard error in percent for each who, under both gradings."""
    whos = sorted({who for task in scores.values() for who in task}, key=lambda who: (who != "base", who))
    lines = [f"{'task':<16}{'grading':<11}{'n':>6}" + "".join(f"{who:>18}" for who in whos)]
    for task, found in scores.items():
        count = next(iter(found.values()))["count"]
        lines.append(f"{task:<16}{_grading(found):<11}{count:>6}" + _cells(found, whos))
        official = {who: score["official"] for who, score in found.items() if "official" in score}
        if official:
            lines.append(f"{'':<16}{'official':<11}{'':>6}" + _cells(official, whos))
    return "\n".join(lines)


def _grading(found: dict[str, dict[str, Any]]) -> str:
    score = next(iter(found.values()))
    return "corrected" if "official" in score else str(score["metric"])


def _cells(found: dict[str, dict[str, Any]], whos: list[str]) -> str:
    return "".join(f"{_percent(found[who]) if who in found else '–':>18}" for who in whos)


def _percent(score: dict[str, Any]) -> str:
    error = score["standard_error"]
    return f"{100 * score['accuracy']:.1f}" + (f" ± {100 * error:.1f} %" if error is not None else " %")
