"""Pictures of runs and comparisons."""

import html
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot  # noqa: E402  the backend must be chosen first
from matplotlib.axes import Axes  # noqa: E402

from milora.comparison.results import Arm  # noqa: E402
from milora.evaluation.intervals import Ends  # noqa: E402
from milora.evaluation.scores import Scores  # noqa: E402
from milora.run.records import StepLoss  # noqa: E402


@dataclass(frozen=True, slots=True)
class Drawing:
    """A picture as SVG text for a self-contained page, and as the bytes of a PNG file."""

    title: str
    svg: str
    png: bytes


def draw_loss(losses: Sequence[StepLoss]) -> Drawing:
    """Training loss against steps."""

    def draw(axes: Axes) -> None:
        axes.plot([entry.step for entry in losses], [entry.loss for entry in losses], color="#2a6f97")
        axes.set(xlabel="step", ylabel="training loss", ylim=(0, None))

    return _render(draw, "Training loss by step")


def draw_scores(tasks: dict[str, tuple[Scores, Scores]]) -> Drawing:
    """The headline before and after training, {task: (base, trained)}, of tasks that are scored in shares."""

    def draw(axes: Axes) -> None:
        for place, (label, color) in enumerate((("base", "#adb5bd"), ("trained", "#2a6f97"))):
            found, offset = [both[place].headline for both in tasks.values()], (-0.2, 0.2)[place]
            axes.bar(
                [position + offset for position in range(len(tasks))],
                [100 * metric.value for metric in found],
                yerr=_reach([(metric.value, metric.interval) for metric in found]),
                width=0.36,
                label=label,
                color=color,
                capsize=4,
            )
        axes.set_xticks(range(len(tasks)), list(tasks))
        axes.set(ylabel="score, %, with 95 % intervals", ylim=(0, None), xlim=(-1, len(tasks)))
        axes.legend()

    return _render(draw, "Scores before and after training")


def draw_spectra(spectra: dict[str, list[float]], trained: dict[str, slice]) -> Drawing:
    """Singular values of a few weights; the components that an adapter started from, where they are known, in bold."""

    def draw(axes: Axes) -> None:
        for name, values in spectra.items():
            (line,) = axes.semilogy(values, linewidth=0.8, label=name.removeprefix("model."))
            if name in trained:
                places = range(len(values))[trained[name]]
                axes.semilogy(places, values[trained[name]], linewidth=4, color=line.get_color(), alpha=0.6)
        axes.set(xlabel="component" + (" (trained ones in bold)" if trained else ""), ylabel="singular value")
        axes.legend(fontsize="small")

    return _render(draw, "Singular values of a few weights")


def _reach(found: Sequence[tuple[float, Ends | None]]) -> list[list[float]]:
    """How far intervals reach below and above their values, in percent; 0 without an interval."""
    ends = [(value, *(ends or (value, value))) for value, ends in found]
    return [[100 * (value - low) for value, low, _ in ends], [100 * (high - value) for value, _, high in ends]]


def draw_scores_by_rate(arms: list[Arm], task: str) -> Drawing:
    """Score against learning rate, one line per arm, with the intervals of the table."""

    def draw(axes: Axes) -> None:
        for arm, style in zip(arms, _styles(), strict=False):
            rates = [point.learning_rate for point in arm.points if task in point.scores]
            found = [point.scores[task] for point in arm.points if task in point.scores]
            means, reach = [100 * score.mean for score in found], _reach([(one.mean, one.ends) for one in found])
            axes.errorbar(rates, means, yerr=reach, label=arm.name, capsize=3, **style)
        _scale_rates(axes, arms)
        axes.set(xlabel="learning rate", ylabel=f"{task}, %, with 95 % intervals")
        axes.legend(fontsize="small")

    return _render(draw, f"Score on {task} against learning rate")


def draw_validation_by_rate(arms: list[Arm]) -> Drawing:
    """Validation loss against learning rate: what the best rate is chosen by."""

    def draw(axes: Axes) -> None:
        for arm, style in zip(arms, _styles(), strict=False):
            rates = [point.learning_rate for point in arm.points]
            axes.plot(rates, [point.validation_loss.mean for point in arm.points], label=arm.name, **style)
            axes.plot(
                arm.best.learning_rate, arm.best.validation_loss.mean, "o", ms=11, mfc="none", color=style["color"]
            )
        _scale_rates(axes, arms)
        axes.set(xlabel="learning rate (the best ringed)", ylabel="validation loss")
        axes.legend(fontsize="small")

    return _render(draw, "Validation loss against learning rate")


def draw_pareto(places: dict[str, tuple[float, float]], what: str, task: str) -> Drawing:
    """Score against a price, each arm at its best rate: better is up and to the left; the undominated are joined."""

    def draw(axes: Axes) -> None:
        front = sorted(
            place
            for place in places.values()
            if not any(other[0] <= place[0] and other[1] >= place[1] and other != place for other in places.values())
        )
        axes.step([price for price, _ in front], [score for _, score in front], where="post", color="#adb5bd")
        for (name, (price, score)), style in zip(places.items(), _styles(), strict=False):
            axes.plot(price, score, style["marker"], color=style["color"], label=name)
        axes.set(xlabel=what, ylabel=f"{task}, %")
        axes.legend(fontsize="small")

    return _render(draw, f"Score on {task} against {what}")


def draw_losses(arms: list[Arm]) -> Drawing:
    """Training loss by step, each arm at its best rate, its first seed."""

    def draw(axes: Axes) -> None:
        for arm, style in zip(arms, _styles(), strict=False):
            steps = [entry.step for entry in arm.best.losses]
            axes.plot(steps, [entry.loss for entry in arm.best.losses], label=arm.name, color=style["color"])
        axes.set(xlabel="step", ylabel="training loss", ylim=(0, None))
        axes.legend(fontsize="small")

    return _render(draw, "Training loss by step, each method at its best rate")


def _scale_rates(axes: Axes, arms: list[Arm]) -> None:
    rates = sorted({point.learning_rate for arm in arms for point in arm.points})
    axes.set_xscale("log")
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.minorticks_off()


def _styles() -> Iterator[dict[str, Any]]:
    """Colors that color-blind readers can tell apart (Okabe and Ito), and markers for those who print in gray."""
    colors = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
    return ({"color": color, "marker": marker} for marker in "os^Dv" for color in colors)


def _render(draw: Callable[[Axes], None], title: str) -> Drawing:
    figure, axes = pyplot.subplots(figsize=(6, 3.4), layout="constrained")
    draw(axes)
    axes.spines[["top", "right"]].set_visible(False)
    text, image = io.StringIO(), io.BytesIO()
    metadata: dict[str, Any] = {"Title": title, "Date": None}
    figure.savefig(text, format="svg", metadata=metadata, transparent=True)
    figure.savefig(image, format="png", dpi=200)
    pyplot.close(figure)
    svg = text.getvalue()
    label = f'<svg role="img" aria-label="{html.escape(title)}" '
    return Drawing(title, svg[svg.index("<svg") :].replace("<svg ", label, 1), image.getvalue())
