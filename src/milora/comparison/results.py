"""Finished runs → what a comparison shows, as numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from milora.comparison.grid import Cell, Grid
from milora.comparison.pairs import Graded, Tested, Untested, compare_pairs, scored_in_all
from milora.comparison.statistics import Interval, interval_of_mean, interval_of_scores
from milora.evaluation.benchmarks import GROUPS
from milora.evaluation.evaluate import find_scores, locate_samples
from milora.evaluation.forgetting import CROSS_ENTROPY, FLOOR, FORGETTING
from milora.evaluation.scores import Metric, Scores, read_samples
from milora.evaluation.target import target_of_run
from milora.run.directory import ScoreFolder
from milora.run.records import Divergence, StepLoss, TrainingRecord

COSTS = {
    "seconds": "training seconds",
    "tokens_per_second": "tokens per second",
    "peak_memory": "peak memory, bytes",
    "trainable": "trainable parameters",
    "stored": "stored parameters",
    "initialization_seconds": "initialization seconds",
    "weight_change": "‖ΔW‖",
}


@dataclass(frozen=True, slots=True)
class Point:
    """One arm at one learning rate, over those of its seeds that are finished.

    `scores` are the headlines by task, `metrics` the others by task/metric.
    """

    learning_rate: float
    seeds: list[int]
    validation_loss: Interval
    scores: dict[str, Interval]
    metrics: dict[str, Interval]
    forgetting: Interval | None
    costs: dict[str, float]
    losses: list[StepLoss]


@dataclass(frozen=True, slots=True)
class Arm:
    """A method: those of its rates that have a finished run, the best by validation loss, and all planned rates.

    `at_edge`: the best is the lowest or the highest of the planned ones, and a better one may be outside the grid.
    """

    name: str
    points: list[Point]
    best: Point
    rates: list[float]
    at_edge: bool


@dataclass(frozen=True, slots=True)
class Diverged:
    """A run of the grid whose training diverged."""

    arm: str
    learning_rate: float
    seed: int
    found: Divergence


@dataclass(frozen=True, slots=True)
class Results:
    """What the finished runs show.

    `texts` counts the different texts on which forgetting was measured; `floor` is the cross-entropy of a model that
    forgot nothing, None if it was not measured, or on several texts. `base` has the headlines by task, and the other
    metrics by task/metric.
    """

    base: dict[str, Interval]
    arms: list[Arm]
    tests: dict[str, list[Tested]]
    untested: dict[str, list[Untested]]
    missing: int
    diverged: list[Diverged]
    texts: int
    floor: float | None


@dataclass(frozen=True, slots=True)
class _Finished:
    """A finished cell, its training, and the trained model's scores and items by task: read once."""

    cell: Cell
    training: TrainingRecord
    scores: dict[str, Scores]
    items: dict[str, Graded]


def collect_results(grid: Grid) -> Results:
    """Read what is finished of a comparison; arms without a finished run are left out.

    Each arm's learning rate is the one of the lowest validation loss, averaged over the seeds that tune: held-out
    training rows, never the benchmarks that it is then scored on.
    """
    needed = grid.needed()
    finished = [_read(cell) for cell in needed if cell.is_finished]
    arms = [
        _collect_arm(name, grid, runs)
        for name in grid.comparison.arms
        if (runs := [run for run in finished if run.cell.arm == name])
    ]
    tasks = sorted({task for run in finished for task in run.items})
    pairs = {task: compare_pairs({arm.name: _items_of(arm, task, finished) for arm in arms}) for task in tasks}
    texts = {_read_text(run.cell) for run in finished if FORGETTING in run.scores}
    floors = [run.scores[FORGETTING].metrics[FLOOR].value for run in finished if FORGETTING in run.scores]
    return Results(
        base=_read_base(finished),
        arms=arms,
        tests={task: tested for task, (tested, _) in pairs.items()},
        untested={task: untested for task, (_, untested) in pairs.items()},
        missing=grid.count - len(finished),
        diverged=[_read_divergence(cell) for cell in needed if cell.run.is_diverged],
        texts=len(texts),
        floor=float(np.mean(floors)) if len(texts) == 1 else None,
    )


def _read(cell: Cell) -> _Finished:
    section, target = cell.run.recipe.evaluation, target_of_run(cell.run)
    scores = {found.task: found for found in find_scores(target, section)}
    items = {task: read_items(locate_samples(target, task, section)) for task in scores if task != FORGETTING}
    return _Finished(cell, cell.run.read(TrainingRecord), scores, items)


def _read_divergence(cell: Cell) -> Diverged:
    return Diverged(cell.arm, cell.learning_rate, cell.seed, cell.run.read(Divergence))


def _read_base(finished: Sequence[_Finished]) -> dict[str, Interval]:
    for run in finished:
        if run.cell.scores_base:
            found = find_scores(target_of_run(run.cell.run).base, run.cell.run.recipe.evaluation)
            return {
                name: Interval(metric.value, *(metric.interval or (None, None)))
                for scores in found
                for name, metric in [(scores.task, scores.headline), *_others(scores).items()]
            }
    return {}


def _others(scores: Scores) -> dict[str, Metric]:
    """The metrics that are not the headline, by task/metric."""
    return {f"{scores.task}/{name}": metric for name, metric in scores.metrics.items() if name != scores.primary}


def _read_text(cell: Cell) -> tuple[str, ...]:
    """The text on which a run's forgetting was measured."""
    (folder,) = locate_samples(target_of_run(cell.run), FORGETTING, cell.run.recipe.evaluation)
    return tuple(sample.question for sample in read_samples(folder))


def _collect_arm(name: str, grid: Grid, runs: Sequence[_Finished]) -> Arm:
    planned, rate = grid.comparison.rates(name), grid.best_rate(name)
    rates = sorted({run.cell.learning_rate for run in runs})
    # Runs share their factors: the slowest initialization is the one that computed them.
    slowest = max(run.training.initialization_seconds for run in runs)
    points = [_collect_point(each, [run for run in runs if run.cell.learning_rate == each], slowest) for each in rates]
    return Arm(name, points, points[rates.index(rate)], planned, rate in (planned[0], planned[-1]))


def _collect_point(rate: float, runs: Sequence[_Finished], initialization_seconds: float) -> Point:
    forgotten = [run.scores[FORGETTING] for run in runs if FORGETTING in run.scores]
    shared = set.intersection(*(set(run.items) for run in runs))
    tasks = sorted(shared, key=lambda task: (task in GROUPS, task))
    losses = [run.training.held_out_loss[1] for run in runs if run.training.held_out_loss]
    return Point(
        learning_rate=rate,
        seeds=[run.cell.seed for run in runs],
        validation_loss=interval_of_mean(losses),
        scores={task: _collect_score(task, runs) for task in tasks},
        metrics=_collect_metrics(tasks, runs),
        forgetting=interval_of_mean([found.metrics[CROSS_ENTROPY].value for found in forgotten]) if forgotten else None,
        costs=_mean_costs([_read_costs(run.training, initialization_seconds) for run in runs]),
        losses=runs[0].training.losses,
    )


def _collect_score(task: str, runs: Sequence[_Finished]) -> Interval:
    """Over items and seeds; over seeds alone if the task's score is not the mean of its items' grades."""
    headlines, items = [run.scores[task].headline.value for run in runs], [run.items[task] for run in runs]
    if len({len(run.scores) for run in items}) == 1 and np.allclose([run.mean for run in items], headlines):
        scores = scored_in_all(items)
        if scores.size:
            return interval_of_scores(scores)
    return interval_of_mean(headlines)


def _collect_metrics(tasks: Sequence[str], runs: Sequence[_Finished]) -> dict[str, Interval]:
    """Over seeds."""
    values: dict[str, list[float]] = {}
    for task in tasks:
        for run in runs:
            for name, metric in _others(run.scores[task]).items():
                values.setdefault(name, []).append(metric.value)
    return {name: interval_of_mean(found) for name, found in values.items() if len(found) == len(runs)}


def _read_costs(record: TrainingRecord, initialization_seconds: float) -> dict[str, float]:
    return {
        # A resumed run knows its pace, not how long its killed part took.
        "seconds": record.seconds_per_step * record.steps,
        "tokens_per_second": record.tokens_per_step / record.seconds_per_step,
        "peak_memory": record.peak_memory,
        "trainable": record.parameters.trainable,
        "stored": record.parameters.stored,
        "initialization_seconds": initialization_seconds,
        "weight_change": record.weight_change,
    }


def _mean_costs(costs: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([entry[key] for entry in costs])) for key in COSTS}


def _items_of(arm: Arm, task: str, finished: Sequence[_Finished]) -> dict[int, Graded]:
    """An arm's items by seed, at its best rate."""
    return {
        run.cell.seed: run.items[task]
        for run in finished
        if (run.cell.arm, run.cell.learning_rate) == (arm.name, arm.best.learning_rate) and task in run.items
    }


def read_items(folders: Sequence[ScoreFolder]) -> Graded:
    """Return the headline's score of every item of a task, or of a group's tasks, weighted so that their mean is its.

    The result is empty if the headline of a task is not a mean of grades, such as POPE's F1.
    """
    questions, parts = [], []
    for folder in folders:
        primary = folder.read(Scores).primary
        graded = [sample for sample in read_samples(folder) if primary in sample.grades]
        questions += [sample.question for sample in graded]
        parts.append([sample.grades[primary].score for sample in graded])
    if not all(parts):
        return Graded([], [])
    counts = [sum(score is not None for score in part) for part in parts]
    weights = [sum(counts) / (len(parts) * count) if count else 0.0 for count in counts]
    return Graded(
        questions,
        [
            None if score is None else score * weight
            for part, weight in zip(parts, weights, strict=True)
            for score in part
        ],
    )
