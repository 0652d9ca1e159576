"""Pictures of an inspection."""

import html
import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("svg")
from matplotlib import pyplot  # noqa: E402  the backend must be chosen first
from matplotlib.axes import Axes  # noqa: E402

from milora.evaluation.inspection import AdapterFigures, Inspection  # noqa: E402
from milora.method.analysis.matrices import group_by_type, layer_of  # noqa: E402
from milora.method.analysis.spectrum import WeightFigures  # noqa: E402
from milora.method.analysis.update import UpdateFigures  # noqa: E402
from milora.report.figures import Drawing  # noqa: E402

BINS = 20
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")  # Okabe and Ito
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
}
ENDS = (("top", "first r components"), ("bottom", "last r components"))


def draw_inspection(found: Inspection) -> dict[str, Drawing]:
    """Return the pictures by file name."""
    drawings = {
        "spectra": _render(
            "Singular values by position in the spectrum", 1, 1, lambda axes: _draw_spectra(axes, found)
        ),
        "weights": _render("Weights by layer", 2, 2, lambda axes: _draw_weights(axes, found)),
    }
    if found.adapters:
        drawings |= {
            "energy": _render(
                "Where in the spectrum of W the update lies", 1, 2, lambda axes: _draw_energy(axes, found)
            ),
            "similarity": _render(
                "Similarity of the update's first directions to those of W, φ",
                2,
                2,
                lambda axes: _draw_phi(axes, found),
            ),
            "updates": _render("Updates by layer", 1, 3, lambda axes: _draw_updates(axes, found)),
        }
    if any(one.forgetting for one in found.adapters):
        drawings["forgetting"] = _render("‖ΔW‖ against forgetting", 1, 1, lambda axes: _draw_forgetting(axes, found))
    return drawings


def _draw_spectra(axes: Sequence[Axes], found: Inspection) -> None:
    positions = np.linspace(0, 1, 201)
    for (kind, names), color in zip(group_by_type(found.weights).items(), COLORS * 9, strict=False):
        curves = [_relative_values(found.weights[name], positions) for name in names]
        axes[0].semilogy(positions, np.median(curves, axis=0), color=color, label=kind)
    axes[0].set(xlabel="position in the spectrum: 0 is the largest", ylabel="σ / σ max, median over layers")
    axes[0].legend(ncols=2)


def _relative_values(weight: WeightFigures, positions: np.ndarray) -> np.ndarray:
    """σ/σ₁ at positions; not a number between the ends of a spectrum that is not whole."""
    smaller, values = min(weight.shape), np.array(weight.values)
    places = np.concatenate([np.arange(len(values) - weight.rank), smaller - weight.rank + np.arange(weight.rank)])
    found: np.ndarray = np.interp(positions, places / max(smaller - 1, 1), values / values[0])
    if not weight.whole:
        inner = (positions * (smaller - 1) > weight.rank - 1) & (positions * (smaller - 1) < smaller - weight.rank)
        found[inner] = np.nan
    return found


def _draw_weights(axes: Sequence[Axes], found: Inspection) -> None:
    shown: list[tuple[str, Callable[[WeightFigures], float]]] = [
        ("stable rank", lambda one: one.stable_rank),
        ("condition number", lambda one: one.condition),
        ("energy of the last r, %", lambda one: 100 * one.minor_energy),
        ("bf16 residual: loss / ‖W_m‖, %", lambda one: 100 * one.rounding["bfloat16"]),
    ]
    for panel, (title, read) in zip(axes, shown, strict=True):
        for (kind, names), color in zip(group_by_type(found.weights).items(), COLORS * 9, strict=False):
            layers, values = _by_layer(names, {name: read(found.weights[name]) for name in names})
            panel.semilogy(layers, values, color=color, label=kind)
        panel.set(title=title, xlabel="layer")
    _add_legend(axes[0])


def _by_layer(names: Sequence[str], values: dict[str, float]) -> tuple[list[int], list[float]]:
    """Layers, and the mean of what is finite in each."""
    groups: dict[int, list[float]] = {}
    for name in names:
        if name in values and np.isfinite(values[name]):
            groups.setdefault(layer_of(name), []).append(values[name])
    return list(groups), [float(np.mean(group)) for group in groups.values()]


def _draw_energy(axes: Sequence[Axes], found: Inspection) -> None:
    """Density of an update's energy over positions, 1 being an even spread over the components."""
    edges = np.linspace(0, 1, BINS + 1)
    for side, panel in enumerate(axes):
        for one, color in zip(found.adapters, COLORS * 9, strict=False):
            densities = [
                BINS * np.diff(np.interp(edges, *_cumulate(found.weights[name], figures, side)))
                for name, figures in one.weights.items()
                if figures.rank
            ]
            if densities:
                panel.stairs(
                    np.mean(densities, axis=0), edges, color=color, label=one.name, linewidth=1.6, baseline=None
                )
        panel.axhline(1, color="#999999", linewidth=0.8, linestyle=":")
        panel.set(yscale="log", title=("outputs (left singular vectors)", "inputs (right singular vectors)")[side])
        panel.set(xlabel="position in the spectrum of W", ylabel="energy, times an even spread")
    _add_legend(axes[0])


def _cumulate(weight: WeightFigures, figures: UpdateFigures, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions, and the share of the update up to each; between the ends of a spectrum it grows evenly."""
    smaller, known = min(weight.shape), np.array((figures.outputs, figures.inputs)[side])
    shares = np.cumsum(known)
    places = np.arange(1, len(known) + 1.0)
    if not weight.whole:
        shares[weight.rank :] += figures.between[side]
        places[weight.rank :] += smaller - len(known)
        places = np.insert(places, weight.rank, smaller - weight.rank)
        shares = np.insert(shares, weight.rank, shares[weight.rank - 1] + figures.between[side])
    return np.insert(places, 0, 0) / smaller, np.insert(shares, 0, 0)


def _draw_phi(axes: Sequence[Axes], found: Inspection) -> None:
    kinds = group_by_type(found.weights)
    for column, (end, title) in enumerate(ENDS):
        by_layer, by_type = axes[column], axes[2 + column]
        for place, (one, color) in enumerate(zip(found.adapters, COLORS * 9, strict=False)):
            phi = _read_phi(one, end)
            by_layer.plot(*_by_layer(list(phi), phi), color=color, label=one.name)
            means = [np.mean([phi[name] for name in names if name in phi] or [np.nan]) for names in kinds.values()]
            width = 0.8 / len(found.adapters)
            offset = (place + 0.5) * width - 0.4
            by_type.bar(np.arange(len(kinds)) + offset, means, width=width, color=color)
        random = _read_phi(found.adapters[0], "random")
        by_layer.plot(*_by_layer(list(random), random), color="#999999", linestyle=":", label="random r components")
        by_layer.set(title=f"φ with the {title}", xlabel="layer", ylim=(0, None))
        by_type.set_xticks(range(len(kinds)), list(kinds), rotation=30, ha="right")
        by_type.set(title="the same by type, mean over layers", ylim=(0, None))
    for left, right in (axes[:2], axes[2:]):
        right.sharey(left)
        left.set_ylim(0, max(left.get_ylim()[1], right.get_ylim()[1]))
    _add_legend(axes[0])


def _read_phi(one: AdapterFigures, end: str) -> dict[str, float]:
    return {name: getattr(each.similarity, end) for name, each in one.weights.items() if each.similarity}


def _draw_updates(axes: Sequence[Axes], found: Inspection) -> None:
    for one, color in zip(found.adapters, COLORS * 9, strict=False):
        names = list(one.weights)
        shown: list[dict[str, float]] = [
            {name: each.amplification for name, each in one.weights.items() if each.rank},
            one.activity,
            {name: each.intruders for name, each in one.weights.items() if each.intruders is not None},
        ]
        for panel, values in zip(axes, shown, strict=True):
            panel.plot(*_by_layer(names, values), color=color, label=one.name)
    for panel, title in zip(axes, ("amplification", "activity, E‖ΔW h‖² / E‖W h‖²", "intruders of 10"), strict=True):
        panel.set(title=title, xlabel="layer")
    axes[0].set_yscale("log")
    axes[1].set_yscale("log")
    axes[2].set_ylim(-0.2, 10)
    _add_legend(axes[0])


def _add_legend(axes: Axes) -> None:
    """One legend for all panels, below them, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    axes.figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))


def _draw_forgetting(axes: Sequence[Axes], found: Inspection) -> None:
    (panel,) = axes
    for one, color in zip(found.adapters, COLORS * 9, strict=False):
        if one.forgetting:
            panel.plot(one.norm, one.forgetting.cross_entropy, "o", color=color, label=one.name)
            panel.axhline(one.forgetting.floor, color="#999999", linewidth=0.8, linestyle=":")
    panel.set(xlabel="‖ΔW‖", ylabel="forgetting, nats per token (dotted: its floor)")
    panel.legend()


def _render(title: str, rows: int, columns: int, draw: Callable[[Sequence[Axes]], None]) -> Drawing:
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(
            rows, columns, figsize=(max(6.4, 3.5 * columns), 0.4 + 2.9 * rows), layout="constrained", squeeze=False
        )
        draw(list(axes.flat))
        for panel in axes.flat:
            panel.spines[["top", "right"]].set_visible(False)
        text, image = io.StringIO(), io.BytesIO()
        metadata: dict[str, Any] = {"Title": title, "Date": None}
        figure.savefig(text, format="svg", metadata=metadata, transparent=True)
        figure.savefig(image, format="png", dpi=160)
        pyplot.close(figure)
    svg = text.getvalue()
    label = f'<svg role="img" aria-label="{html.escape(title)}" '
    return Drawing(title, svg[svg.index("<svg") :].replace("<svg ", label, 1), image.getvalue())
