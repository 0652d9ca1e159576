"""Every two arms of a comparison on every task: tested, or why not."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import numpy as np

from milora.comparison.statistics import Difference, Matrix, compare_pair, correct_for_many

Reason = Literal["not scored", "no grades", "no seed", "other items"]


@dataclass(frozen=True, slots=True)
class Graded:
    """What one run was asked on a task, and the headline's score of every item; None for one that was excluded."""

    questions: list[str]
    scores: list[float | None]

    @property
    def mean(self) -> float:
        """NaN if there is no score."""
        known = [score for score in self.scores if score is not None]
        return fmean(known) if known else math.nan


@dataclass(frozen=True, slots=True)
class Tested:
    """A paired difference with Holm's p-values over all pairs of its task."""

    difference: Difference
    p_items: float
    p_seeds: float | None


@dataclass(frozen=True, slots=True)
class Untested:
    """Two arms that cannot be tested against each other on a task.

    One of them was not scored on it, the task has no grades of single items, they have no finished seed in common, or
    they were asked other items.
    """

    arms: tuple[str, str]
    reason: Reason


def compare_pairs(graded: Mapping[str, Mapping[int, Graded]]) -> tuple[list[Tested], list[Untested]]:
    """Compare every two arms on one task, given {arm: {seed: its items}}; p-values are corrected over the pairs."""
    compared = [_compare((one, other), graded) for one, other in itertools.combinations(graded, 2)]
    untested = [found for found in compared if isinstance(found, Untested)]
    return _correct([found for found in compared if isinstance(found, Difference)]), untested


def _compare(arms: tuple[str, str], graded: Mapping[str, Mapping[int, Graded]]) -> Difference | Untested:
    first, second = (graded[arm] for arm in arms)
    if not first or not second:
        return Untested(arms, "not scored")
    seeds = [seed for seed in first if seed in second]
    if not seeds:
        return Untested(arms, "no seed")
    runs = [arm[seed] for arm in (first, second) for seed in seeds]
    if not all(run.scores for run in runs):
        return Untested(arms, "no grades")
    if any(run.questions != runs[0].questions for run in runs):
        return Untested(arms, "other items")
    scores = scored_in_all(runs)
    if not scores.size:
        return Untested(arms, "no grades")
    return compare_pair(arms, scores[: len(seeds)], scores[len(seeds) :])


def scored_in_all(runs: Sequence[Graded]) -> Matrix:
    """Return scores `(runs, items)` of the items that no run excluded; the runs were asked the same ones."""
    items = [scores for scores in zip(*(run.scores for run in runs), strict=True) if None not in scores]
    return np.array(items, dtype=float).reshape(-1, len(runs)).T


def _correct(differences: list[Difference]) -> list[Tested]:
    items = correct_for_many([difference.p_items for difference in differences])
    known = [difference.p_seeds for difference in differences if difference.p_seeds is not None]
    seeds = iter(correct_for_many(known))
    return [
        Tested(difference, p_items, None if difference.p_seeds is None else next(seeds))
        for difference, p_items in zip(differences, items, strict=True)
    ]
