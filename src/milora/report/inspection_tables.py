"""An inspection → tables and sentences."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from tabulate import tabulate

from milora.evaluation.inspection import AdapterFigures, Inspection
from milora.method.analysis.matrices import group_by_type, layer_of
from milora.method.analysis.spectrum import WeightFigures
from milora.method.analysis.update import UpdateFigures

Table = tuple[list[str], list[list[str]]]


def format_inspection(found: Inspection) -> str:
    """Return plain tables, and what they show in sentences."""
    parts = [
        f"{title}\n{tabulate(rows, headers, disable_numparse=True, stralign='right')}"
        for title, (headers, rows) in tabulate_inspection(found).items()
    ]
    return "\n\n".join([*parts, *say_inspection(found)])


def tabulate_inspection(found: Inspection) -> dict[str, Table]:
    """Return the tables by title: of what adapters did, the paper's table 7, and of the weights."""
    tables: dict[str, Table] = {}
    if found.adapters:
        tables |= {"Adapters, medians over weights": _tabulate_adapters(found)}
        middle = _middle_layer(found.weights)
        title = f"Layer {middle}: norms in subspaces of r directions (as table 7 of the paper)"
        names = [name for name in found.weights if layer_of(name) == middle]
        tables |= {title: _tabulate_subspaces(found, names)}
    return tables | {"Weights by type, medians over layers": _tabulate_types(found.weights)}


def say_inspection(found: Inspection) -> list[str]:
    """Return what the tables show, and what was not inspected."""
    said = []
    if len(found.adapters) > 1:
        medians = {one.name: _median(one.weights.values(), _amplification) for one in found.adapters}
        least, most = (choose(medians, key=medians.__getitem__) for choose in (min, max))
        shared = [name for name in found.weights if all(name in one.weights for one in found.adapters)]
        lowest = sum(_is_lowest(name, least, found.adapters) for name in shared)
        said.append(
            f"Amplification, median over weights: lowest for {least} ({medians[least]:.3g}), highest for {most} "
            f"({medians[most]:.3g}). {least} has the lowest of all in {lowest} of {len(shared)} weights."
        )
    said += [
        f"{one.name}: {len(one.others)} layers are not inspected, because their update is not a product of two "
        f"factors: {one.others[0]} first."
        for one in found.adapters
        if one.others
    ]
    if any(not figures.whole for figures in found.weights.values()):
        said.append(
            "Weights of more than 1024 columns were decomposed at both ends only; --exact finds every component."
        )
    return said


def _middle_layer(names: Iterable[str]) -> int:
    layers = sorted({layer_of(name) for name in names})
    return layers[len(layers) // 2]


def _amplification(figures: UpdateFigures) -> float:
    return figures.amplification


def _is_lowest(weight: str, adapter: str, adapters: Sequence[AdapterFigures]) -> bool:
    return min(adapters, key=lambda one: one.weights[weight].amplification).name == adapter


def _tabulate_types(weights: Mapping[str, WeightFigures]) -> Table:
    headers = ["type", "weights", "shape", "r", "‖W‖", "σ max", "σ min", "condition", "stable rank"]
    headers += ["minor energy", "bf16 loss", "fp16 loss"]
    rows = []
    for kind, names in group_by_type(weights).items():
        found = [weights[name] for name in names]
        shapes = {figures.shape for figures in found}
        shape = "×".join(map(str, shapes.pop())) if len(shapes) == 1 else "several"
        rows.append([kind, str(len(names)), shape, *_figures_of_weight(found)])
    return headers, rows


def _figures_of_weight(found: Sequence[WeightFigures]) -> list[str]:
    return [
        f"{_median(found, lambda one: one.rank):.0f}",
        f"{_median(found, lambda one: one.norm):.4g}",
        f"{_median(found, lambda one: one.values[0]):.4g}",
        f"{_median(found, lambda one: one.values[-1]):.3g}",
        f"{_median(found, lambda one: one.condition):.3g}",
        f"{_median(found, lambda one: one.stable_rank):.3g}",
        f"{100 * _median(found, lambda one: one.minor_energy):.3g} %",
        f"{100 * _median(found, lambda one: one.rounding['bfloat16']):.3g} %",
        f"{100 * _median(found, lambda one: one.rounding['float16']):.3g} %",
    ]


def _tabulate_adapters(found: Inspection) -> Table:
    headers = ["adapter", "‖ΔW‖", "effective rank", "amplification", "φ top", "φ random", "φ bottom"]
    headers += ["energy top r", "energy bottom r", "intruders", "activity", "forgetting (floor)"]
    rows = []
    for one in found.adapters:
        figures, forgot = list(one.weights.values()), one.forgetting
        ends = [_sum_ends(each, found.weights[name].rank) for name, each in one.weights.items()]
        intruders = [each.intruders for each in figures if each.intruders is not None]
        rows.append(
            [
                one.name,
                f"{one.norm:.4g}",
                f"{_median(figures, lambda each: each.effective_rank):.3g}",
                f"{_median(figures, _amplification):.3g}",
                *_say_similarity(figures),
                *(f"{100 * median(shares):.3g} %" for shares in zip(*ends, strict=True)),
                f"{sum(intruders)} of {10 * len(intruders)}" if intruders else "–",
                f"{median(one.activity.values()):.3g}" if one.activity else "–",
                f"{forgot.cross_entropy:.3f} ({forgot.floor:.3f})" if forgot else "–",
            ]
        )
    return headers, rows


def _say_similarity(figures: Sequence[UpdateFigures]) -> list[str]:
    found = [each.similarity for each in figures if each.similarity]
    if not found:
        return ["–"] * 3
    return [f"{median(getattr(each, end) for each in found):.3g}" for end in ("top", "random", "bottom")]


def _sum_ends(figures: UpdateFigures, rank: int) -> tuple[float, float]:
    """Return the shares of an update that write to the outputs of the first and of the last r components."""
    return sum(figures.outputs[:rank]), sum(figures.outputs[-rank:])


def _tabulate_subspaces(found: Inspection, names: Sequence[str]) -> Table:
    """‖UᵀWV‖ with U and V of W, at random, and of each adapter's ΔW; then ‖UᵀΔWV‖ and the amplification."""
    headers = ["weight: U, V of", "r", "‖W‖", "‖UᵀWV‖", "‖UᵀΔWV‖", "amplification"]
    rows = []
    for name in names:
        weight = found.weights[name]
        norm = f"{weight.norm:.4g}"
        rows.append([f"{name}: W", str(weight.rank), norm, f"{weight.in_own:.4g}", "–", "–"])
        rows.append([f"{name}: random", str(weight.rank), norm, f"{weight.in_random:.4g}", "–", "–"])
        for one in found.adapters:
            if name in one.weights:
                each = one.weights[name]
                measured = (each.in_update, each.update_in_own, each.amplification)
                rows.append([f"{name}: {one.name}", str(each.rank), norm, *(f"{value:.4g}" for value in measured)])
    return headers, rows


def tabulate_every(found: Inspection) -> dict[str, Table]:
    headers, _ = _tabulate_types({})
    weights = [[name, "×".join(map(str, one.shape)), *_figures_of_weight([one])] for name, one in found.weights.items()]
    tables = {"Every weight": (["weight", *headers[2:]], weights)}
    if found.adapters:
        tables["Every update"] = _tabulate_subspaces(found, list(found.weights))
    return tables


def _median(found: Iterable[Any], read: Callable[[Any], float]) -> float:
    return median(read(one) for one in found)
