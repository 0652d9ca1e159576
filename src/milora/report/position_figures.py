"""Score and forgetting against where in the spectrum an adapter started."""

from collections.abc import Mapping

from milora.comparison.grid import Grid
from milora.comparison.results import Arm, Results
from milora.comparison.statistics import Interval
from milora.report.charts import Chart, Mark, Series
from milora.report.figures import Links
from milora.report.scales import Axis, linear_axis

NAMED = {"principal": 0.0, "middle": 0.5, "minor": 1.0}
FEWEST = 3  # positions that make a curve
POSITION = Axis(
    "position in the spectrum: 0 is principal, 1 is minor", -0.04, 1.04, tuple((n / 5, f"{n / 5:g}") for n in range(6))
)


def draw_positions(grid: Grid, results: Results, links: Links) -> dict[str, Chart]:
    """Return the charts by file name, if the arms start from several positions; each arm is at its best rate."""
    positions = find_positions(grid)
    arms = sorted((arm for arm in results.arms if arm.name in positions), key=lambda arm: positions[arm.name])
    if len({positions[arm.name] for arm in arms}) < FEWEST:
        return {}

    def chart(title: str, unit: str, found: Mapping[str, Interval | None], factor: float) -> Chart:
        marks = [_mark(arm, interval, positions, factor, links) for arm in arms if (interval := found[arm.name])]
        y = linear_axis(unit, [end for mark in marks for end in (mark.y, *(mark.ends or ()))])
        says = ", ".join(mark.says for mark in marks)
        return Chart(title, says, POSITION, y, [Series("", marks)], "Lines are 95 % intervals.")

    charts = {}
    for task in results.tests:
        scores = {arm.name: arm.best.scores.get(task) for arm in arms}
        charts[f"{task}-by-position"] = chart(f"{task} by position", "%", scores, 100)
    if any(arm.best.forgetting for arm in arms):
        forgetting = {arm.name: arm.best.forgetting for arm in arms}
        charts["forgetting-by-position"] = chart("Forgetting by position", "nats per token", forgetting, 1)
    return charts


def find_positions(grid: Grid) -> dict[str, float]:
    """Return where in the spectrum each arm starts; arms of other methods and of random components have no position."""
    found = {}
    for cell in grid.cells:
        adapter = cell.run.recipe.adapter
        position = NAMED.get(adapter.components) if isinstance(adapter.components, str) else adapter.components
        if adapter.method == "milora" and position is not None:
            found[cell.arm] = position
    return found


def _mark(arm: Arm, interval: Interval, positions: Mapping[str, float], factor: float, links: Links) -> Mark:
    ends = None if interval.ends is None else (factor * interval.ends[0], factor * interval.ends[1])
    says = f"{arm.name}: {factor * interval.mean:.4g}"
    return Mark(positions[arm.name], factor * interval.mean, says, ends, links(arm.name, arm.best.learning_rate))
