"""95 % intervals of mean scores."""

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev

LEVEL = 0.95
Z = NormalDist().inv_cdf((1 + LEVEL) / 2)

Ends = tuple[float, float]


def wilson(share: float, count: float) -> Ends:
    """Return Wilson's interval (1927) of a share of `count` yes/no grades, which is honest at 0 and at all of them.

    (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n)
    """
    center = share + Z**2 / (2 * count)
    half = Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    low, high = ((center + sign * half) / (1 + Z**2 / count) for sign in (-1, 1))
    return (0.0 if share == 0 else low), (1.0 if share == 1 else high)  # exactly, without rounding


def are_verdicts(grades: Sequence[float]) -> bool:
    """Whether every grade is yes or no, 1 or 0."""
    return all(grade in (0, 1) for grade in grades)


def interval_of(grades: Sequence[float]) -> Ends | None:
    """Return Wilson's interval of yes/no grades, and Student's of others; None if equal others show no spread."""
    if are_verdicts(grades):
        return wilson(fmean(grades), len(grades))
    spread = stdev(grades) if len(grades) > 1 else 0.0
    if spread == 0:
        return None
    mean, half = fmean(grades), student(len(grades) - 1) * spread / math.sqrt(len(grades))
    return mean - half, mean + half


def student(freedom: float) -> float:
    """Return the quantile of Student's t that a two-sided 95 % interval has."""
    from scipy import stats  # slow to import, and what only reads scores does not need it

    return float(stats.t.ppf((1 + LEVEL) / 2, freedom))


def interval_of_average(means: Sequence[float], ends: Sequence[Ends]) -> Ends:
    """Return the interval of the mean of independent means, from theirs (Zou and Donner, 2008).

    low = m − √(Σ (mᵢ − lowᵢ)²)/k,  high = m + √(Σ (highᵢ − mᵢ)²)/k
    """
    below = math.hypot(*(mean - low for mean, (low, _) in zip(means, ends, strict=True)))
    above = math.hypot(*(high - mean for mean, (_, high) in zip(means, ends, strict=True)))
    return fmean(means) - below / len(means), fmean(means) + above / len(means)
