"""Pictures of a run, as SVG text for a self-contained page."""

import io
from collections.abc import Callable
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot  # noqa: E402  the backend must be chosen first
from matplotlib.axes import Axes  # noqa: E402

from milora.comparison.scores import Scores  # noqa: E402


def draw_loss(losses: list[dict[str, float]]) -> str:
    """Training loss against steps."""

    def draw(axes: Axes) -> None:
        axes.plot([entry["step"] for entry in losses], [entry["loss"] for entry in losses], color="#2a6f97")
        axes.set(xlabel="step", ylabel="training loss", ylim=(0, None))

    return _render(draw, "Training loss by step")


def draw_scores(tasks: Scores) -> str:
    """Accuracy before and after, with 95 % intervals."""

    def draw(axes: Axes) -> None:
        for offset, (label, color) in zip((-0.2, 0.2), (("base", "#adb5bd"), ("trained", "#2a6f97")), strict=True):
            scores = [found[label] for found in tasks.values()]
            axes.bar(
                [position + offset for position in range(len(tasks))],
                [100 * score["accuracy"] for score in scores],
                yerr=[196 * (score["standard_error"] or 0) for score in scores],
                width=0.36,
                label=label,
                color=color,
                capsize=4,
            )
        axes.set_xticks(range(len(tasks)), list(tasks))
        axes.set(ylabel="accuracy, %", ylim=(0, None), xlim=(-1, len(tasks)))
        axes.legend()

    return _render(draw, "Accuracy before and after training")


def draw_spectra(spectra: dict[str, list[float]], rank: int) -> str:
    """Singular values of a few weights, the minor `rank` of them in bold."""

    def draw(axes: Axes) -> None:
        for name, values in spectra.items():
            (line,) = axes.semilogy(values, linewidth=0.8, label=name.removeprefix("model."))
            first = len(values) - rank
            axes.semilogy(range(first, len(values)), values[first:], linewidth=4, color=line.get_color(), alpha=0.6)
        axes.set(xlabel=f"component (the minor {rank} in bold)", ylabel="singular value")
        axes.legend(fontsize="small")

    return _render(draw, "Singular values of a few weights")


def _render(draw: Callable[[Axes], None], title: str) -> str:
    figure, axes = pyplot.subplots(figsize=(6, 3.4), layout="constrained")
    draw(axes)
    axes.spines[["top", "right"]].set_visible(False)
    text = io.StringIO()
    metadata: dict[str, Any] = {"Title": title, "Date": None}
    figure.savefig(text, format="svg", metadata=metadata, transparent=True)
    pyplot.close(figure)
    svg = text.getvalue()
    return svg[svg.index("<svg") :]
