"""Finished runs → what a comparison shows, as numbers."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from milora.comparison.grid import Cell, Grid
from milora.comparison.statistics import Difference, Interval, Matrix, compare_pair, correct_for_many, interval_of_mean
from milora.evaluation.benchmarks import GROUPS
from milora.evaluation.evaluate import find_scores, locate_scores
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


def collect_results(grid: Grid) -> Results:
    """Read what is finished of a comparison; arms without a finished run are left out.

    Each arm's learning rate is the one of the lowest validation loss, averaged over seeds: held-out training rows,
    never the benchmarks that it is then scored on.
    """
    finished = [cell for cell in grid.cells if cell.is_finished]
    arms = [arm for name in grid.comparison.arms if (arm := _collect_arm(name, finished)) is not None]
    trained = {task: scores for cell in finished for task, scores in _read_trained(cell).items()}
    return Results(
        base=_read_base(finished),
        arms=arms,
        tests=_test_pairs(arms, finished),
        missing=len(grid.cells) - len(finished),
        items={task: scores.count for task, scores in trained.items() if task != FORGETTING},
        texts=len({_read_text(cell) for cell in finished if FORGETTING in _read_trained(cell)}),
    )


def _read_trained(cell: Cell) -> dict[str, Scores]:
    found = find_scores(target_of_run(cell.run), cell.run.recipe.evaluation)
    return {scores.task: scores for scores in found}


def _read_base(finished: Sequence[Cell]) -> dict[str, float]:
    for cell in finished:
        if cell.scores_base:
            found = find_scores(target_of_run(cell.run).base, cell.run.recipe.evaluation)
            return {scores.task: scores.headline.value for scores in found}
    return {}


def _read_text(cell: Cell) -> tuple[str, ...]:
    """The text on which a run's forgetting was measured."""
    (folder,) = locate_scores(target_of_run(cell.run), FORGETTING, cell.run.recipe.evaluation)
    return tuple(sample.question for sample in read_samples(folder))


def _collect_arm(name: str, finished: Sequence[Cell]) -> Arm | None:
    cells = [cell for cell in finished if cell.arm == name]
    if not cells:
        return None
    rates = sorted({cell.learning_rate for cell in cells})
    points = [_collect_point(rate, [cell for cell in cells if cell.learning_rate == rate]) for rate in rates]
    best = min(points, key=lambda point: (-len(point.seeds), _finite(point.validation_loss.mean)))
    return Arm(name, points, best, best.learning_rate in (rates[0], rates[-1]))


def _collect_point(rate: float, cells: Sequence[Cell]) -> Point:
    trained = [cell.run.read(TrainingRecord) for cell in cells]
    scores = [_read_trained(cell) for cell in cells]
    forgotten = [found.pop(FORGETTING) for found in scores if FORGETTING in found]
    tasks = sorted(set.intersection(*(set(found) for found in scores)), key=lambda task: (task in GROUPS, task))
    return Point(
        learning_rate=rate,
        seeds=[cell.seed for cell in cells],
        validation_loss=interval_of_mean([record.held_out_loss[1] for record in trained if record.held_out_loss]),
        scores={task: interval_of_mean([found[task].headline.value for found in scores]) for task in tasks},
        forgetting=interval_of_mean([found.metrics[CROSS_ENTROPY].value for found in forgotten]) if forgotten else None,
        floor=float(np.mean([found.metrics[FLOOR].value for found in forgotten])) if forgotten else None,
        costs=_mean_costs([_read_costs(record) for record in trained]),
        losses=trained[0].losses,
    )


def _read_costs(record: TrainingRecord) -> dict[str, float]:
    return {
        # A resumed run knows its pace, not how long its killed part took.
        "seconds": record.seconds_per_step * record.steps,
        "tokens_per_second": record.tokens_per_step / record.seconds_per_step,
        "peak_memory": record.peak_memory,
        "trainable": record.parameters.trainable,
        "stored": record.parameters.stored,
        "initialization_seconds": record.initialization_seconds,
        "weight_change": record.weight_change,
    }


def _mean_costs(costs: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([entry[key] for entry in costs])) for key in COSTS}


def _test_pairs(arms: Sequence[Arm], finished: Sequence[Cell]) -> dict[str, list[Tested]]:
    """Every two arms, each at its best rate, on the seeds that both have; corrected over the pairs of a task."""
    places = {(cell.arm, cell.learning_rate, cell.seed): cell for cell in finished}
    tests = {}
    for task in sorted(set.intersection(*(set(arm.best.scores) for arm in arms)) if arms else ()):
        differences = []
        for first, second in itertools.combinations(arms, 2):
            seeds = [seed for seed in first.best.seeds if seed in second.best.seeds]
            matrices = [
                _read_matrix([places[arm.name, arm.best.learning_rate, seed] for seed in seeds], task)
                for arm in (first, second)
            ]
            if seeds and matrices[0].size and matrices[0].shape == matrices[1].shape:
                differences.append(compare_pair((first.name, second.name), matrices[0], matrices[1]))
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


def _read_matrix(cells: Sequence[Cell], task: str) -> Matrix:
    """(seeds, items): the headline's score of every item."""
    return np.array([_read_item_scores(cell, task) for cell in cells], dtype=np.float64)


def _read_item_scores(cell: Cell, task: str) -> list[float]:
    """One score for each item; those of an average are weighted so that their mean is the mean over its tasks."""
    section = cell.run.recipe.evaluation
    parts = []
    for folder in locate_scores(target_of_run(cell.run), task, section):
        primary = folder.read(Scores).primary
        parts.append([sample.grades[primary].score for sample in read_samples(folder) if primary in sample.grades])
    total = sum(map(len, parts))
    return [score * total / (len(parts) * len(part)) for part in parts for score in part]


def _finite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf
