"""Runs side by side: what they have, what came of them, and in which keys they differ."""

from collections.abc import Sequence
from itertools import combinations

from milora.evaluation.scores import Sample, Scores, read_samples
from milora.report.runs import IN_COLUMNS, Listed, format_columns, say_loss, say_number, say_score, say_time
from milora.run.directory import EVERYTHING, open_run
from milora.run.records import TrainingRecord


def format_beside(runs: Sequence[Listed]) -> str:
    """A plain table with a column for each run: results first, then every key in which they differ.

    Below it, for each task that two runs were asked the same items of: how many are right in only one of them.
    """
    rows = [
        ["", *(run.run for run in runs)],
        ["state", *(run.state for run in runs)],
        ["learning rate", *(say_number(run.learning_rate) for run in runs)],
        ["seed", *(say_number(run.seed) for run in runs)],
        ["time", *map(say_time, runs)],
        ["peak memory, GB", *map(_say_memory, runs)],
        ["held-out loss", *map(say_loss, runs)],
    ]
    for task in dict.fromkeys(task for run in runs for task in run.scores):
        rows.append([task, *(say_score(run.scores[task]) if task in run.scores else "–" for run in runs)])
    settings = [run.settings or {} for run in runs]
    for key in sorted({key for each in settings for key in each}.difference(IN_COLUMNS)):
        values = [str(each.get(key, "default")) for each in settings]
        if len(set(values)) > 1:
            rows.append([key, *values])
    rows.append(["next", *(run.next for run in runs)])
    compared = [line for one, other in combinations(runs, 2) for line in _compare(one, other)]
    return "\n".join([format_columns(rows), *compared])


def _say_memory(run: Listed) -> str:
    if run.seconds is None:
        return "–"
    return f"{open_run(run.path, EVERYTHING).read(TrainingRecord).peak_memory / 1e9:.2f}"


def _compare(one: Listed, other: Listed) -> list[str]:
    first, second = (_read_verdicts(run) for run in (one, other))
    lines = []
    for task in first:
        if task in second and first[task].keys() == second[task].keys():
            pairs = [(first[task][item], second[task][item]) for item in first[task]]
            only_one, only_other = pairs.count((True, False)), pairs.count((False, True))
            here, there = f"{only_one} are right only in {one.run}", f"{only_other} only in {other.run}"
            lines.append(f"{task}: of {len(pairs)} items {here}, {there}")
    return lines


def _read_verdicts(run: Listed) -> dict[str, dict[tuple[int, str], bool]]:
    """Whether each item is right by the headline's grade, by its place and question, of tasks with such grades."""
    found = {}
    for folder in open_run(run.path, EVERYTHING).score_folders("trained"):
        if folder.has(Scores):
            scores, samples = folder.read(Scores), read_samples(folder)
            if all(_has_verdict(sample, scores) for sample in samples):
                found[scores.task] = {
                    (place, sample.question): sample.grades[scores.primary].score == 1
                    for place, sample in enumerate(samples)
                }
    return found


def _has_verdict(sample: Sample, scores: Scores) -> bool:
    return scores.primary in sample.grades and sample.grades[scores.primary].score in (0, 1)
