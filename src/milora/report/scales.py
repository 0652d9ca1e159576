"""Axes: where a value lies between the ends of a chart, and which values are worth a label."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

STEPS = (1, 2, 5, 10)


@dataclass(frozen=True, slots=True)
class Axis:
    """Values from `low` to `high`, and labels at some of them."""

    title: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    is_log: bool = False

    def place(self, value: float) -> float:
        """Return where a value lies: 0 is `low`, 1 is `high`."""
        low, high, value = (math.log(x) if self.is_log else x for x in (self.low, self.high, value))
        return (value - low) / (high - low)


def linear_axis(title: str, values: Iterable[float], *, whole: bool = False, zero: bool = False) -> Axis:
    """Return an axis over values whose ends are labels; `whole` has no label between integers, `zero` starts at 0."""
    found = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = 0.0 if zero else min(found), max(found)
    if low == high:
        low, high = (low - 1, high + 1) if whole or not low else sorted((0.9 * low, 1.1 * high))
    raw = (high - low) / 5
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in STEPS if unit * factor >= raw * 0.999)
    step = max(step, 1.0) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    ticks = [number * step for number in range(first, last + 1)]
    return Axis(title, ticks[0], ticks[-1], tuple((tick, f"{tick:,.{digits}f}") for tick in ticks))


def step_axis(steps: Sequence[float], title: str = "step") -> Axis:
    """Return an axis from 0 to the last step, which ends there: no room is left where nothing happened."""
    axis = linear_axis(title, steps, whole=True, zero=True)
    last = max(steps)
    return Axis(title, 0.0, last, tuple(tick for tick in axis.ticks if tick[0] <= last)) if last else axis


def rate_axis(rates: Iterable[float]) -> Axis:
    """Return a logarithmic axis labeled at the rates that were run, as far as their labels have room."""
    found = sorted(set(rates))
    low, high = found[0] / 1.5, found[-1] * 1.5
    bare = Axis("learning rate", low, high, (), is_log=True)
    ticks: list[tuple[float, str]] = []
    for rate in found:
        if not ticks or bare.place(rate) - bare.place(ticks[-1][0]) >= 0.16:
            ticks.append((rate, f"{rate:g}"))
    return Axis(bare.title, low, high, tuple(ticks), is_log=True)


def decade_axis(title: str, values: Iterable[float]) -> Axis:
    """Return a logarithmic axis labeled at powers of ten; within less than two of them, also at 2 and 5 times."""
    found = [value for value in values if value > 0 and math.isfinite(value)] or [1.0]
    low, high = min(found), max(found)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high * 1.0001))
    factors = (1, 2, 5) if math.log10(high / low) < 2 else (1,)
    stride = max(1, (last - first) // 6)
    labels = [factor * 10.0**power for power in range(first, last + 1, stride) for factor in factors]
    low, high = low / 1.15, high * 1.15
    return Axis(title, low, high, tuple((v, f"{v:g}") for v in labels if low <= v <= high), is_log=True)
