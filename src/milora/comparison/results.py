"""Finished runs → what a comparison shows, as numbers."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from milora.comparison.grid import Cell, Grid
from milora.comparison.statistics import Difference, Interval, compare_pair, correct_for_many, interval_of_mean
from milora.evaluation.benchmarks import GROUPS
from milora.evaluation.evaluate import find_scores, locate_samples
from milora.evaluation.forgetting import CROSS_ENTROPY, FLOOR, FORGETTING
from milora.evaluation.scores import Scores, read_samples
from milora.evaluation.target import target_of_run
from milora.run.records import StepLoss, TrainingRecord

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
    """One arm at one learning rate, over those of its seeds that are finished."""

    learning_rate: float
    seeds: list[int]
    validation_loss: Interval
    scores: dict[str, Interval]
    forgetting: Interval | None
    floor: float | None
    costs: dict[str, float]
    losses: list[StepLoss]


@dataclass(frozen=True, slots=True)
class Arm:
    """A method: all its rates, the best by validation loss, and whether a better one may be outside the grid."""

    name: str
    points: list[Point]
    best: Point
    at_edge: bool


@dataclass(frozen=True, slots=True)
class Tested:
    """A paired difference with Holm's p-values over all pairs of its task."""

    difference: Difference
    p_items: float
    p_seeds: float | None


@dataclass(frozen=True, slots=True)
class Results:
    base: dict[str, float]
    arms: list[Arm]
    tests: dict[str, list[Tested]]
    missing: int
    items: dict[str, int]
    texts: int  # on how many different texts forgetting was measured


@dataclass(frozen=True, slots=True)
class _Finished:
    """A finished cell, its training, and the trained model's scores by task: read once."""

    cell: Cell
    training: TrainingRecord
    scores: dict[str, Scores]


def collect_results(grid: Grid) -> Results:
    """Read what is finished of a comparison; arms without a finished run are left out.

    Each arm's learning rate is the one of the lowest validation loss, averaged over seeds: held-out training rows,
    never the benchmarks that it is then scored on.
    """
    finished = [_read(cell) for cell in grid.cells if cell.is_finished]
    arms = [arm for name in grid.comparison.arms if (arm := _collect_arm(name, finished)) is not None]
    trained = {task: scores for run in finished for task, scores in run.scores.items()}
    return Results(
        base=_read_base(finished),
        arms=arms,
        tests=_test_pairs(arms, finished),
        missing=len(grid.cells) - len(finished),
        items={task: scores.count for task, scores in trained.items() if task != FORGETTING},
        texts=len({_read_text(run.cell) for run in finished if FORGETTING in run.scores}),
    )


def _read(cell: Cell) -> _Finished:
    found = find_scores(target_of_run(cell.run), cell.run.recipe.evaluation)
    return _Finished(cell, cell.run.read(TrainingRecord), {scores.task: scores for scores in found})


def _read_base(finished: Sequence[_Finished]) -> dict[str, float]:
    for run in finished:
        if run.cell.scores_base:
            found = find_scores(target_of_run(run.cell.run).base, run.cell.run.recipe.evaluation)
            return {scores.task: scores.headline.value for scores in found}
    return {}


def _read_text(cell: Cell) -> tuple[str, ...]:
    """The text on which a run's forgetting was measured."""
    (folder,) = locate_samples(target_of_run(cell.run), FORGETTING, cell.run.recipe.evaluation)
    return tuple(sample.question for sample in read_samples(folder))


def _collect_arm(name: str, finished: Sequence[_Finished]) -> Arm | None:
    runs = [run for run in finished if run.cell.arm == name]
    if not runs:
        return None
    rates = sorted({run.cell.learning_rate for run in runs})
    # Runs share their factors: the slowest initialization is the one that computed them.
    slowest = max(run.training.initialization_seconds for run in runs)
    points = [_collect_point(rate, [run for run in runs if run.cell.learning_rate == rate], slowest) for rate in rates]
    best = min(points, key=lambda point: (-len(point.seeds), _finite(point.validation_loss.mean)))
    return Arm(name, points, best, best.learning_rate in (rates[0], rates[-1]))


def _collect_point(rate: float, runs: Sequence[_Finished], initialization_seconds: float) -> Point:
    forgotten = [run.scores[FORGETTING] for run in runs if FORGETTING in run.scores]
    shared = set.intersection(*(set(run.scores) for run in runs)) - {FORGETTING}
    tasks = sorted(shared, key=lambda task: (task in GROUPS, task))
    losses = [run.training.held_out_loss[1] for run in runs if run.training.held_out_loss]
    return Point(
        learning_rate=rate,
        seeds=[run.cell.seed for run in runs],
        validation_loss=interval_of_mean(losses),
        scores={task: interval_of_mean([run.scores[task].headline.value for run in runs]) for task in tasks},
        forgetting=interval_of_mean([found.metrics[CROSS_ENTROPY].value for found in forgotten]) if forgotten else None,
        floor=float(np.mean([found.metrics[FLOOR].value for found in forgotten])) if forgotten else None,
        costs=_mean_costs([_read_costs(run.training, initialization_seconds) for run in runs]),
        losses=runs[0].training.losses,
    )


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


def _test_pairs(arms: Sequence[Arm], finished: Sequence[_Finished]) -> dict[str, list[Tested]]:
    """Every two arms, each at its best rate, on the seeds that both have; corrected over the pairs of a task."""
    tests = {}
    for task in sorted(set.intersection(*(set(arm.best.scores) for arm in arms)) if arms else ()):
        items = {
            (arm.name, run.cell.seed): _read_item_scores(run, task)
            for arm in arms
            for run in finished
            if (run.cell.arm, run.cell.learning_rate) == (arm.name, arm.best.learning_rate)
        }
        differences = []
        for first, second in itertools.combinations(arms, 2):
            seeds = [seed for seed in first.best.seeds if seed in second.best.seeds]
            one, other = ([items[arm.name, seed] for seed in seeds] for arm in (first, second))
            if seeds and len({len(row) for row in (*one, *other)}) == 1 and one[0]:
                differences.append(compare_pair((first.name, second.name), np.array(one), np.array(other)))
        tests[task] = _correct(differences)
    return tests


def _correct(differences: list[Difference]) -> list[Tested]:
    items = correct_for_many([difference.p_items for difference in differences])
    known = [difference.p_seeds for difference in differences if difference.p_seeds is not None]
    seeds = iter(correct_for_many(known))
    return [
        Tested(difference, p_items, None if difference.p_seeds is None else next(seeds))
        for difference, p_items in zip(differences, items, strict=True)
    ]


def _read_item_scores(run: _Finished, task: str) -> list[float]:
    """The headline's score of every item; those of an average are weighted so that their mean is that of its tasks."""
    target, section = target_of_run(run.cell.run), run.cell.run.recipe.evaluation
    parts = []
    for folder in locate_samples(target, task, section):
        primary = folder.read(Scores).primary
        parts.append([sample.grades[primary].score for sample in read_samples(folder) if primary in sample.grades])
    total = sum(map(len, parts))
    return [score * total / (len(parts) * len(part)) for part in parts for score in part]


def _finite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf
