"""Finished runs → what a comparison shows, as numbers."""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from milora.comparison.grid import Grid
from milora.comparison.plan import Cell
from milora.evaluation.scores import AVERAGE, read_scores, read_verdicts
from milora.comparison.statistics import Difference, Interval, Matrix, compare_pair, correct_for_many, interval_of_mean
from milora.evaluation.forgetting import FORGETTING
from milora.run.directory import RunDirectory

COSTS = {
    "seconds": "training seconds",
    "tokens_per_second": "tokens per second",
    "peak_memory": "peak memory, bytes",
    "trainable": "trainable parameters",
    "stored": "stored parameters",
    "initialization_seconds": "initialisation seconds",
    "weight_change": "‖ΔW‖",
}


@dataclass(frozen=True, slots=True)
class Point:
    """One arm at one learning rate, over its seeds, those of them that are finished."""

    learning_rate: float
    seeds: list[int]
    validation_loss: Interval
    scores: dict[str, Interval]
    forgetting: Interval | None
    floor: float | None
    costs: dict[str, float | None]
    losses: list[dict[str, float]]


@dataclass(frozen=True, slots=True)
class Arm:
    """A method: all its rates, the best by validation loss, and whether a better one may lie outside the grid."""

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
    texts: list[str]


def collect_results(grid: Grid) -> Results:
    """Read what is finished of a comparison; arms without a finished run are left out.

    Each arm's learning rate is the one of the lowest validation loss, averaged over seeds: held-out training rows,
    never the benchmarks that it is then scored on.
    """
    finished = [(cell, run) for cell, run in grid if run.is_finished]
    arms = [arm for name in grid.comparison.arms if (arm := _collect_arm(name, finished)) is not None]
    tests = _test_pairs(arms, finished)
    base: dict[str, float] = {}
    items: dict[str, int] = {}
    texts = set()
    for _, run in finished:
        for task, found in read_scores(run.path / "evaluation").items():
            items[task] = found["trained"]["count"]
            if "base" in found:
                base[task] = found["base"]["accuracy"]
        if (run.path / FORGETTING).is_file():
            texts.add(run.read(FORGETTING)["text_sha256"])
    return Results(base, arms, tests, len(list(grid)) - len(finished), items, sorted(texts))


def _collect_arm(name: str, finished: list[tuple[Cell, RunDirectory]]) -> Arm | None:
    runs = [(cell, run) for cell, run in finished if cell.arm == name]
    if not runs:
        return None
    rates = sorted({cell.learning_rate for cell, _ in runs})
    points = [_collect_point(rate, [(cell, run) for cell, run in runs if cell.learning_rate == rate]) for rate in rates]
    best = min(points, key=lambda point: (-len(point.seeds), _finite(point.validation_loss.mean)))
    return Arm(name, points, best, best.learning_rate in (rates[0], rates[-1]))


def _collect_point(rate: float, runs: list[tuple[Cell, RunDirectory]]) -> Point:
    trained = [run.read("training.json") for _, run in runs]
    scores = [read_scores(run.path / "evaluation") for _, run in runs]
    forgotten = [run.read(FORGETTING) for _, run in runs if (run.path / FORGETTING).is_file()]
    tasks = set.intersection(*(set(found) for found in scores))
    return Point(
        rate,
        [cell.seed for cell, _ in runs],
        interval_of_mean([training["held_out_loss"][1] for training in trained]),
        {
            task: interval_of_mean([found[task]["trained"]["accuracy"] for found in scores])
            for task in sorted(tasks, key=lambda task: (task == AVERAGE, task))
        },
        interval_of_mean([entry["cross_entropy"] for entry in forgotten]) if forgotten else None,
        float(np.mean([entry["floor"] for entry in forgotten])) if forgotten else None,
        _mean_costs([_read_costs(training) for training in trained]),
        trained[0]["losses"],
    )


def _read_costs(training: dict[str, Any]) -> dict[str, float | None]:
    each = training["seconds_per_step"]
    return {
        # A resumed run knows its pace, not how long its killed part took.
        "seconds": each and each * training["steps"],
        "tokens_per_second": each and training["tokens_per_step"] / each,
        "peak_memory": training["peak_memory"],
        **{key: training["parameters"][key] for key in ("trainable", "stored")},
        "initialization_seconds": training["initialization_seconds"],
        "weight_change": training["weight_change"],
    }


def _mean_costs(costs: list[dict[str, float | None]]) -> dict[str, float | None]:
    known = {key: [cost for entry in costs if (cost := entry[key]) is not None] for key in COSTS}
    return {key: float(np.mean(values)) if values else None for key, values in known.items()}


def _test_pairs(arms: list[Arm], finished: list[tuple[Cell, RunDirectory]]) -> dict[str, list[Tested]]:
    """Every two arms, each at its best rate, on the seeds that both have; corrected over the pairs of a task."""
    places = {(cell.arm, cell.learning_rate, cell.seed): run for cell, run in finished}
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


def _read_matrix(runs: list[RunDirectory], task: str) -> Matrix:
    """(seeds, items): 1 where the answer is right."""
    return np.array([read_verdicts(run.path / "evaluation", task) for run in runs], dtype=np.float64)


def _finite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf
