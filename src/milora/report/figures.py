"""What the charts of runs and comparisons show."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from milora.comparison.results import Arm, Point
from milora.report.charts import Chart, Mark, Series
from milora.report.scales import Axis, decade_axis, linear_axis, rate_axis, step_axis
from milora.run.records import StepLoss, TrainingRecord

MOST = 600  # points of a line: more than a chart has pixels for
SMOOTHED_FROM = 60  # steps: fewer are read as they are

Links = Callable[[str, float], str]  # an arm and a learning rate → the page of its run


def draw_loss(training: TrainingRecord) -> Chart:
    """The training loss by step, and the loss on held-out rows where it was measured."""
    losses, held_out = training.losses, training.held_out
    steps, values = [entry.step for entry in losses], [entry.loss for entry in losses]
    rough = Series("training", _thin(steps, values), 0, has_marks=False, is_faint=len(losses) >= SMOOTHED_FROM)
    series = [rough]
    if len(losses) >= SMOOTHED_FROM:
        window = len(losses) // 20
        series = [
            Series("", rough.marks, 0, has_marks=False, is_faint=True),
            Series(f"training, mean of {window} steps", _smooth(steps, values, window), 0, has_marks=False),
        ]
    if held_out:
        marks = [
            Mark(entry.step, entry.loss, f"held-out rows, step {entry.step}: {entry.loss:.3f}") for entry in held_out
        ]
        series.append(Series("held-out rows", marks, 1, is_dashed=True))
    says = f"Training loss {values[0]:.3f} at step {steps[0]}, {values[-1]:.3f} at step {steps[-1]}."
    both = values + [entry.loss for entry in held_out]
    return Chart("Loss", says, step_axis(steps), linear_axis("nats per token", both), series)


def draw_rate(training: TrainingRecord) -> Chart | None:
    """The learning rate by step; None for a record that has none."""
    found = [(entry.step, entry.learning_rate) for entry in training.losses if entry.learning_rate is not None]
    if not found:
        return None
    steps, rates = [step for step, _ in found], [rate for _, rate in found]
    highest, y = max(rates), linear_axis("learning rate", rates, zero=True)
    scaled = replace(y, ticks=tuple((value, f"{value:g}") for value, _ in y.ticks))
    says = f"At most {highest:g}, {rates[-1]:g} after step {steps[-1]}."
    line = Series("", _thin(steps, rates), 2, has_marks=False)
    return Chart("Learning rate, after each step", says, step_axis(steps), scaled, [line])


def draw_spectra(spectra: Mapping[str, Sequence[float]], trained: Mapping[str, slice]) -> Chart:
    """Singular values of a few weights; the components that an adapter started from, where they are known, are bold."""
    series = []
    for number, (name, values) in enumerate(spectra.items()):
        marks = [Mark(index, value) for index, value in enumerate(values, 1) if value > 0]
        series.append(Series(name.removeprefix("model."), _every(marks), number, has_marks=False))
        if name in trained:
            bold = [mark for mark in marks if mark.x - 1 in range(len(values))[trained[name]]]
            series.append(Series("", bold, number, has_marks=False, is_strong=True))
    longest = max(len(values) for values in spectra.values())
    ticks = linear_axis("", [longest], whole=True, zero=True).ticks
    x = Axis("component, from the largest", 1, longest, tuple(tick for tick in ticks if 1 <= tick[0] <= longest))
    everything = [value for values in spectra.values() for value in values]
    says = "; ".join(f"{name} from {values[0]:.3g} to {values[-1]:.3g}" for name, values in spectra.items())
    return Chart("Singular values", f"{says}.", x, decade_axis("singular value", everything), series)


def draw_scores_by_rate(arms: Sequence[Arm], task: str, links: Links) -> Chart:
    """Score against learning rate, with the intervals of the table."""

    def mark(arm: Arm, point: Point) -> Mark | None:
        found = point.scores.get(task)
        if found is None:
            return None
        ends = None if found.ends is None else (100 * found.ends[0], 100 * found.ends[1])
        between = "" if ends is None else f" ({ends[0]:.1f} … {ends[1]:.1f})"
        says = f"{arm.name}, learning rate {point.learning_rate:g}: {100 * found.mean:.1f} %{between}"
        return Mark(point.learning_rate, 100 * found.mean, says, ends, links(arm.name, point.learning_rate))

    return _by_rate(arms, mark, f"{task} by learning rate", "%", "Lines are 95 % intervals.")


def draw_validation_by_rate(arms: Sequence[Arm], links: Links) -> Chart:
    """The loss on held-out rows against learning rate: what the best rate is chosen by."""

    def mark(arm: Arm, point: Point) -> Mark | None:
        loss, rate = point.validation_loss.mean, point.learning_rate
        best = ", the best of its grid" if point is arm.best else ""
        says = f"{arm.name}, learning rate {rate:g}: {loss:.3f} nats per token{best}"
        return Mark(rate, loss, says, point.validation_loss.ends, links(arm.name, rate))

    return _by_rate(
        arms,
        mark,
        "Held-out loss by learning rate",
        "nats per token",
        "Each method's best rate has the lowest loss of those with the most finished seeds.",
    )


def draw_pareto(
    arms: Sequence[Arm], price: Callable[[Point], float | None], what: str, task: str, links: Links
) -> Chart | None:
    """Score against a price, each arm at its best rate; what no other arm beats in both is joined. None without prices.

    Better is up and to the left.
    """
    places = {
        number: (paid, 100 * arm.best.scores[task].mean)
        for number, arm in enumerate(arms)
        if task in arm.best.scores and (paid := price(arm.best)) is not None
    }
    if not places:
        return None
    found = set(places.values())
    front = sorted(
        place for place in found if not any(o != place and o[0] <= place[0] and o[1] >= place[1] for o in found)
    )
    series = [Series("", [Mark(*place) for place in front], None, has_marks=False, is_stepped=True, is_dashed=True)]
    for number, (paid, score) in places.items():
        name, rate = arms[number].name, arms[number].best.learning_rate
        says = f"{name}, learning rate {rate:g}: {score:.1f} %, {what} {paid:.3g}"
        series.append(Series(name, [Mark(paid, score, says, None, links(name, rate))], number, has_line=False))
    xs, ys = (list(values) for values in zip(*places.values(), strict=True))
    says = "; ".join(mark.says for one in series[1:] for mark in one.marks)
    note = "Better is up and to the left. The dashed line joins what no other method beats in both."
    return Chart(f"{task} against {what}", says, linear_axis(what, xs), linear_axis("%", ys), series, note)


def draw_losses(arms: Sequence[Arm]) -> Chart:
    """The training loss by step, each arm at its best rate, its first seed."""
    series, ends = [], []
    for number, arm in enumerate(arms):
        marks = _smoothed(arm.best.losses)
        ends.append(f"{arm.name} {marks[-1].y:.3f}")
        series.append(Series(arm.name, marks, number, has_marks=False))
    steps = [mark.x for one in series for mark in one.marks]
    values = [mark.y for one in series for mark in one.marks]
    says = f"At the last step: {', '.join(ends)}."
    note = "Each method at its best rate, its first seed."
    return Chart("Training loss", says, step_axis(steps), linear_axis("nats per token", values), series, note)


def _by_rate(arms: Sequence[Arm], mark: Callable[[Arm, Point], Mark | None], title: str, unit: str, note: str) -> Chart:
    series = []
    for number, arm in enumerate(arms):
        marks = [found for point in arm.points if (found := mark(arm, point)) is not None]
        if marks:
            series.append(Series(arm.name, marks, number))
    every = [found for one in series for found in one.marks]
    heights = [value for found in every for value in (found.y, *(found.ends or ()))]
    says = "; ".join(found.says for found in every)
    rates = rate_axis(found.x for found in every)
    return Chart(title, says, rates, linear_axis(unit, heights), series, note)


def _smoothed(losses: Sequence[StepLoss]) -> list[Mark]:
    steps, values = [entry.step for entry in losses], [entry.loss for entry in losses]
    return _smooth(steps, values, len(losses) // 20) if len(losses) >= SMOOTHED_FROM else _thin(steps, values)


def _smooth(steps: Sequence[int], values: Sequence[float], window: int) -> list[Mark]:
    """Means over the last `window` values."""
    means = [fmean(values[max(0, end - window) : end]) for end in range(1, len(values) + 1)]
    return _thin(steps, means)


def _thin(steps: Sequence[int], values: Sequence[float]) -> list[Mark]:
    """At most `MOST` points: means of as many values in a row as that takes; the last one is kept as it is."""
    size = -(-len(steps) // MOST)
    groups = [slice(start, start + size) for start in range(0, len(steps), size)]
    thinned = [Mark(steps[group][-1], fmean(values[group])) for group in groups]
    return thinned if size == 1 else [*thinned, Mark(steps[-1], values[-1])]


def _every(marks: Sequence[Mark]) -> list[Mark]:
    """At most about `MOST` of the marks, the last one among them."""
    stride = -(-len(marks) // MOST)
    return [*marks[::stride], *marks[-1:]]
