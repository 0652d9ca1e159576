"""Confidence intervals and paired tests."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEVEL = 0.95
POWER = 0.8

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the ends of its 95 % interval; None where one value has no spread."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Difference:
    """One arm against another on the same items and seeds, in shares of items.

    `p_items` is of these trained models on new items, `p_seeds` of new seeds and new items both; each None if it
    cannot be computed. `showable` is the true difference that the second test would find 4 times in 5.
    """

    arms: tuple[str, str]
    difference: float
    low: float | None
    high: float | None
    p_items: float
    p_seeds: float | None
    showable: float | None


def interval_of_mean(values: Sequence[float]) -> Interval:
    """Return x̄ ± t_{n−1} s/√n, Student's interval over seeds."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, None, None)
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * float(stats.sem(values))
    return Interval(mean, mean - half, mean + half)


def compare_pair(arms: tuple[str, str], first: Matrix, second: Matrix, seed: int = 0) -> Difference:
    """Test the mean difference of two arms, paired: `first` and `second` are verdicts or scores `(seeds, items)`.

    Of these models: a sign flip of each item's difference, averaged over seeds (permutation test, two-sided).
    Of new seeds too: items and seeds are crossed random factors, and with D = first − second the mean's variance is
    estimated by (MS_items + MS_seeds)/(I·S), never too small, with Satterthwaite's degrees of freedom.
    """
    differences = first - second
    by_item = differences.mean(axis=0)
    flips = stats.permutation_test(
        (by_item,),
        lambda values, axis: np.mean(values, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=9999,
        rng=np.random.default_rng(seed),
    )
    mean = float(differences.mean())
    spread = _crossed_spread(differences)
    if spread is None:
        return Difference(arms, mean, None, None, float(flips.pvalue), None, None)
    error, freedom = spread
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * error
    showable = half + float(stats.t.ppf(POWER, freedom)) * error
    p_seeds = 2 * float(stats.t.sf(abs(mean) / error, freedom)) if error > 0 else (1.0 if mean == 0 else 0.0)
    return Difference(arms, mean, mean - half, mean + half, float(flips.pvalue), p_seeds, showable)


def _crossed_spread(differences: Matrix) -> tuple[float, float] | None:
    """The mean's standard error and its degrees of freedom; None with one seed or one item."""
    seeds, items = differences.shape
    if seeds < 2 or items < 2:
        return None
    squares_items = seeds * float(np.var(differences.mean(axis=0), ddof=1))
    squares_seeds = items * float(np.var(differences.mean(axis=1), ddof=1))
    total = squares_items + squares_seeds
    if total == 0:
        return 0.0, float(seeds - 1)
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
