"""Confidence intervals and paired tests."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from milora.evaluation.intervals import Z, are_verdicts, student, wilson

POWER = 0.8

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the ends of its 95 % interval; None where the values show no spread."""

    mean: float
    low: float | None
    high: float | None

    @property
    def ends(self) -> tuple[float, float] | None:
        return None if self.low is None or self.high is None else (self.low, self.high)


@dataclass(frozen=True, slots=True)
class Difference:
    """One arm against another on the same items and seeds, in shares of items.

    `differing` counts the items that the two score differently with any seed. `p_items` is of these trained models on
    new items, `p_seeds` of new seeds and new items both, None if it cannot be computed: with one seed or one item, or
    if nothing varies. `showable` is the true difference that the second test would find 4 times in 5.
    """

    arms: tuple[str, str]
    seeds: int
    items: int
    differing: int
    difference: float
    low: float | None
    high: float | None
    p_items: float
    p_seeds: float | None
    showable: float | None


def interval_of_mean(values: Sequence[float]) -> Interval:
    """Return x̄ ± t_{n−1} s/√n, Student's interval over seeds."""
    mean = float(np.mean(values))
    if len(set(values)) < 2:
        return Interval(mean, None, None)
    half = student(len(values) - 1) * float(stats.sem(values))
    return Interval(mean, mean - half, mean + half)


def interval_of_scores(scores: Matrix) -> Interval:
    """Return the mean of `scores` (seeds, items), and its interval for new items and, with several seeds, new seeds.

    Of yes/no grades it is Wilson's, with as many items as have the variance V of the mean (see `compare_pair`):
    n = p(1 − p)/V · (z/t)², at most all grades. With one seed, or if V is 0, n counts the items. Of other grades it is
    Student's, p ± t √V.
    """
    seeds, items = scores.shape
    mean, spread = float(scores.mean()), _crossed_spread(scores)
    if are_verdicts(scores.ravel().tolist()):
        count = float(items)
        if spread is not None:
            error, freedom = spread
            count = min(float(seeds * items), mean * (1 - mean) / error**2 * (Z / student(freedom)) ** 2)
        return Interval(mean, *wilson(mean, count))
    if seeds == 1:
        return interval_of_mean(scores[0].tolist())
    if spread is None:
        return Interval(mean, None, None)
    half = student(spread[1]) * spread[0]
    return Interval(mean, mean - half, mean + half)


def compare_pair(arms: tuple[str, str], first: Matrix, second: Matrix, seed: int = 0) -> Difference:
    """Test the mean difference of two arms, paired: `first` and `second` are verdicts or scores `(seeds, items)`.

    Of these models: a sign flip of each item's difference, averaged over seeds (permutation test, two-sided).
    Of new seeds too: items and seeds are crossed random factors, and with D = first − second the mean's variance is
    estimated by (MS_items + MS_seeds)/(I·S), never too small, with Satterthwaite's degrees of freedom.
    """
    differences = first - second
    seeds, items = differences.shape
    mean, differing = float(differences.mean()), int((differences != 0).any(axis=0).sum())
    found = partial(Difference, arms, seeds, items, differing, mean)
    p_items, spread = _flip_signs(differences.mean(axis=0), seed), _crossed_spread(differences)
    if spread is None:
        return found(None, None, p_items, None, None)
    error, freedom = spread
    half = student(freedom) * error
    showable = half + float(stats.t.ppf(POWER, freedom)) * error
    return found(mean - half, mean + half, p_items, 2 * float(stats.t.sf(abs(mean) / error, freedom)), showable)


def _flip_signs(differences: Matrix, seed: int) -> float:
    """The share of sign flips of the items' differences whose mean is at least as far from 0: all, of one item."""
    if len(differences) == 1:
        return 1.0
    flips = stats.permutation_test(
        (differences,),
        lambda values, axis: np.mean(values, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=9999,
        rng=np.random.default_rng(seed),
    )
    return float(flips.pvalue)


def _crossed_spread(differences: Matrix) -> tuple[float, float] | None:
    """The mean's standard error and its degrees of freedom; None with one seed, one item, or nothing that varies."""
    seeds, items = differences.shape
    if seeds < 2 or items < 2:
        return None
    squares_items = seeds * float(np.var(differences.mean(axis=0), ddof=1))
    squares_seeds = items * float(np.var(differences.mean(axis=1), ddof=1))
    total = squares_items + squares_seeds
    if total < 1e-24:  # rounding
        return None
    freedom = total**2 / (squares_items**2 / (items - 1) + squares_seeds**2 / (seeds - 1))
    return math.sqrt(total / (items * seeds)), freedom


def correct_for_many(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values: the chance that any of them is a false alarm is what they say.

    p̃₍ᵢ₎ = max_{j ≤ i} min(1, (m − j + 1) p₍ⱼ₎)
    """
    order = np.argsort(p_values)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(np.array(p_values)[order] * np.arange(len(p_values), 0, -1)))
    return [float(value) for value in adjusted]
