"""What the charts of an inspection show."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import isfinite
from statistics import fmean, median

import numpy as np
from numpy.typing import NDArray

from milora.evaluation.inspection import AdapterFigures, Inspection
from milora.method.analysis.matrices import group_by_type, layer_of
from milora.method.analysis.spectrum import WeightFigures
from milora.method.analysis.update import UpdateFigures
from milora.report.charts import Chart, Mark, Series
from milora.report.scales import Axis, decade_axis, linear_axis, step_axis

Values = Mapping[str, float]  # by the name of a weight
BINS = 20
POSITION = Axis("position in the spectrum of W: 0 is σ₁", 0, 1, tuple((n / 5, f"{n / 5:g}") for n in range(6)))


def draw_inspection(found: Inspection) -> dict[str, Chart]:
    """Return the charts by file name."""
    charts: dict[str, Chart] = {}
    if found.adapters:
        charts |= {"outputs": _draw_energy(found, 0), "inputs": _draw_energy(found, 1), **dict(_draw_updates(found))}
    scored = [one for one in found.adapters if one.forgetting]
    if scored:
        charts["forgetting"] = _draw_forgetting(scored)
    return charts | {"spectra": _draw_spectra(found), **dict(_draw_weights(found))}


def _draw_spectra(found: Inspection) -> Chart:
    positions, series = np.linspace(0, 1, 201), []
    for number, (kind, names) in enumerate(group_by_type(found.weights).items()):
        curve = np.median([_relative_values(found.weights[name], positions) for name in names], axis=0)
        marks = [Mark(float(x), float(y)) for x, y in zip(positions, curve, strict=True) if y > 0]
        series.append(Series(kind, marks, number, has_marks=False))
    title = "σ / σ₁, medians over layers"
    says = f"Singular values of {len(found.weights)} weights, relative to the largest of each."
    return Chart("Spectra by type of weight", says, POSITION, _decades(title, series), series)


def _relative_values(weight: WeightFigures, positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """σ/σ₁ at positions; not a number between the ends of a spectrum that is not whole."""
    smaller, values = min(weight.shape), np.array(weight.values)
    last = smaller - weight.rank
    places = np.arange(smaller) if weight.whole else np.array([*range(weight.rank), *range(last, smaller)])
    wanted = positions * (smaller - 1)
    relative: NDArray[np.float64] = np.interp(wanted, places, values / values[0])
    return relative if weight.whole else np.where((wanted > weight.rank - 1) & (wanted < last), np.nan, relative)


def _draw_weights(found: Inspection) -> Iterator[tuple[str, Chart]]:
    shown: list[tuple[str, str, Callable[[WeightFigures], float]]] = [
        ("stable-rank", "Stable rank, ‖W‖² / σ₁²", lambda one: one.stable_rank),
        ("condition", "Condition number, σ₁ / σ_min", lambda one: one.condition),
        ("minor-energy", "Energy of the last r components, %", lambda one: 100 * one.minor_energy),
        (
            "rounding",
            "What a residual weight in bfloat16 loses, % of ‖W_m‖",
            lambda one: 100 * one.rounding["bfloat16"],
        ),
    ]
    for file, title, read in shown:
        kinds = group_by_type(found.weights).items()
        yield file, _by_layer(title, {kind: {n: read(found.weights[n]) for n in names} for kind, names in kinds})


def _draw_energy(found: Inspection, side: int) -> Chart:
    """Density of the updates' energy over positions, 1 being an even spread over the components."""
    edges, series = np.linspace(0, 1, BINS + 1), []
    for number, one in enumerate(found.adapters):
        densities = [
            BINS * np.diff(np.interp(edges, *_cumulate(found.weights[name], figures, side)))
            for name, figures in one.weights.items()
            if figures.rank
        ]
        if densities:
            heights = np.mean(densities, axis=0)
            marks = [Mark(float(x), float(y)) for x, y in zip(edges, [*heights, heights[-1]], strict=True)]
            series.append(Series(one.name, marks, number, has_marks=False, is_stepped=True))
    what = ("written to the outputs", "read from the inputs")[side]
    title = f"Where the update lies: what is {what} of W's components"
    says = "The share of ‖ΔW‖² along W's singular vectors, against an even spread, mean over weights."
    return Chart(title, says, POSITION, _decades("energy, times an even spread", series), series)


def _cumulate(
    weight: WeightFigures, figures: UpdateFigures, side: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions, and the share of the update up to each; between the ends of a spectrum it grows evenly."""
    smaller, shares = min(weight.shape), np.cumsum((figures.outputs, figures.inputs)[side])
    places = np.arange(1, len(shares) + 1.0)
    if not weight.whole:
        shares[weight.rank :] += figures.between[side]
        places[weight.rank :] += smaller - len(shares)
        shares = np.insert(shares, weight.rank, shares[weight.rank - 1] + figures.between[side])
        places = np.insert(places, weight.rank, smaller - weight.rank)
    return np.insert(places, 0, 0) / smaller, np.insert(shares, 0, 0)


def _draw_updates(found: Inspection) -> Iterator[tuple[str, Chart]]:
    adapters = found.adapters
    for end, words in (("top", "first"), ("bottom", "last")):
        phi = {one.name: _similarity(one, end) for one in adapters}
        title = f"Similarity φ with the {words} r directions of W"
        chart = _by_layer(title, phi, is_linear=True)
        random = _mean_by_layer(_similarity(adapters[0], "random"))
        gray = [Series("random r", random, None, has_marks=False, is_dashed=True)] if random else []
        yield f"similarity-{end}", replace(chart, series=[*chart.series, *gray])
        yield f"similarity-{end}-by-type", _by_type(f"{title}, by type", phi, found.weights)
    amplification = {one.name: {n: each.amplification for n, each in one.weights.items()} for one in adapters}
    yield "amplification", _by_layer("Amplification, ‖UᵀΔWV‖ / ‖UᵀWV‖", amplification)
    yield "activity", _by_layer("Activity, E‖ΔW h‖² / E‖W h‖²", {one.name: one.activity for one in adapters})
    intruders = {one.name: _intruders(one) for one in adapters}
    if any(intruders.values()):
        chart = _by_layer("Intruders among the first 10 directions of W + ΔW", intruders, is_linear=True)
        yield "intruders", replace(chart, y=linear_axis(chart.y.title, [10], zero=True))


def _similarity(one: AdapterFigures, end: str) -> dict[str, float]:
    return {name: getattr(each.similarity, end) for name, each in one.weights.items() if each.similarity}


def _intruders(one: AdapterFigures) -> dict[str, float]:
    return {name: each.intruders for name, each in one.weights.items() if each.intruders is not None}


def _by_layer(title: str, lines: Mapping[str, Values], *, is_linear: bool = False) -> Chart:
    """A line for each name: means over the weights of a layer."""
    series = []
    for number, (name, values) in enumerate(lines.items()):
        marks = [mark for mark in _mean_by_layer(values) if is_linear or mark.y > 0]
        if marks:
            series.append(Series(name, marks, number, has_marks=False))
    heights = [mark.y for each in series for mark in each.marks]
    y = linear_axis("mean over weights", heights, zero=True) if is_linear else _decades("mean over weights", series)
    says = ", ".join(f"{each.name} {median(mark.y for mark in each.marks):.3g}" for each in series)
    layers = [mark.x for each in series for mark in each.marks] or [0.0]
    return Chart(title, f"Medians over layers: {says}.", step_axis(layers, "layer"), y, series)


def _mean_by_layer(values: Values) -> list[Mark]:
    layers: dict[int, list[float]] = {}
    for name, value in values.items():
        if isfinite(value):
            layers.setdefault(layer_of(name), []).append(value)
    return [Mark(layer, fmean(found)) for layer, found in sorted(layers.items())]


def _by_type(title: str, lines: Mapping[str, Values], names: Iterable[str]) -> Chart:
    """A mark for each name and type of weight: means over layers."""
    kinds, series = group_by_type(names), []
    for number, (name, values) in enumerate(lines.items()):
        means = [[values[weight] for weight in group if weight in values] for group in kinds.values()]
        marks = [
            Mark(place, fmean(found), f"{name}, {kind}: {fmean(found):.3g}")
            for place, (kind, found) in enumerate(zip(kinds, means, strict=True))
            if found
        ]
        series.append(Series(name, marks, number, has_line=False))
    ticks = tuple((float(place), kind.removesuffix("_proj")) for place, kind in enumerate(kinds))
    y = linear_axis("mean over layers", [mark.y for each in series for mark in each.marks], zero=True)
    says = f"Of {', '.join(kinds)}."
    return Chart(title, says, Axis("type of weight", -0.5, len(kinds) - 0.5, ticks), y, series)


def _draw_forgetting(scored: Sequence[AdapterFigures]) -> Chart:
    marks = [
        (one.name, Mark(one.norm, one.forgetting.cross_entropy, f"{one.name}: {one.forgetting.cross_entropy:.3f}"))
        for one in scored
        if one.forgetting
    ]
    series = [Series(name, [mark], number, has_line=False) for number, (name, mark) in enumerate(marks)]
    floors = [one.forgetting.floor for one in scored if one.forgetting]
    x = linear_axis("‖ΔW‖", [mark.x for _, mark in marks], zero=True)
    y = linear_axis("forgetting, nats per token", [*(mark.y for _, mark in marks), *floors])
    floor = [Mark(x.low, floors[0]), Mark(x.high, floors[0])]
    series.append(Series("floor: nothing is forgotten", floor, None, has_marks=False, is_dashed=True))
    says = ", ".join(mark.says for _, mark in marks)
    return Chart("‖ΔW‖ against forgetting", f"{says}; the floor is {floors[0]:.3f}.", x, y, series)


def _decades(title: str, series: Sequence[Series]) -> Axis:
    return decade_axis(title, [mark.y for each in series for mark in each.marks])
