"""A comparison's results → the files that people open."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path

from omegaconf import OmegaConf
from pydantic_core import to_jsonable_python

from milora.comparison.grid import Cell, Grid
from milora.comparison.results import Point, Results
from milora.evaluation.evaluate import locate_samples
from milora.evaluation.target import Target, target_of_run
from milora.method.files import write_json, write_text
from milora.report.charts import Chart
from milora.report.figures import (
    Links,
    draw_losses,
    draw_pareto,
    draw_scores_by_rate,
    draw_validation_by_rate,
)
from milora.report.pages import render
from milora.report.position_figures import draw_positions
from milora.report.run_page import has_samples, write_report
from milora.report.samples import Reading, collect, count_pairs, read_task
from milora.report.sentences import say_what_it_cannot, say_what_it_shows
from milora.report.tables import (
    INTERVALS,
    format_arms,
    format_csv,
    format_tests,
    tabulate_arms,
    tabulate_points,
    tabulate_tests,
)
from milora.run.environment import Environment


def write_results(grid: Grid, results: Results) -> Path:
    """Write index.html, results.json, points.csv, table.md, table.tex, the charts, and the page of each finished run.

    Returns the page.
    """
    folder, comparison = grid.path, grid.comparison
    folder.mkdir(parents=True, exist_ok=True)
    shows, cannot = say_what_it_shows(results), say_what_it_cannot(results, grid)
    plan = comparison.model_dump()
    content = {"comparison": plan, **asdict(results), "shows": shows, "cannot_show": cannot}
    write_json(folder / "results.json", to_jsonable_python(content))
    write_text(folder / "points.csv", format_csv(results))
    tables = (format_arms(results, comparison, "github"), format_tests(results, "github"))
    write_text(folder / "table.md", "\n\n".join((*tables, *cannot)) + "\n")
    write_text(folder / "table.tex", format_arms(results, comparison, "latex_booktabs") + "\n")
    needed = grid.needed()
    finished = [cell for cell in needed if cell.is_finished]
    base = next((target_of_run(cell.run).base for cell in finished if cell.scores_base), None)
    for cell in finished:
        write_report(cell.run, base)
    pages = _Pages(folder, needed, finished)
    charts = draw_positions(grid, results, pages.of) | _draw(results, pages.of)
    for name, chart in charts.items():
        write_text(folder / f"{name}.svg", chart.to_file())
    readings = {task: found for task in results.tests if (found := _read(task, results, pages, base))}
    page = render(
        "comparison.html.jinja",
        comparison=comparison,
        folder=folder.name,
        shows=shows,
        cannot=cannot,
        arms=tabulate_arms(results, comparison),
        best={arm.name: pages.of(arm.name, arm.best.learning_rate) for arm in results.arms},
        floor=results.floor,
        intervals=INTERVALS,
        tests={task: tabulate_tests(found) for task, found in results.tests.items()},
        pairs={task: count_pairs(found) for task, found in readings.items()},
        charts=list(charts.values()),
        points=tabulate_points(results, comparison),
        runs=[pages.list(name, rate) for name in comparison.arms for rate in comparison.rates(name)],
        readings=collect(list(readings.values())),
        plan=OmegaConf.to_yaml(OmegaConf.create(plan)),
        environment=finished[0].run.read(Environment),
    )
    write_text(folder / "index.html", page)
    return folder / "index.html"


@dataclass(frozen=True, slots=True)
class _Pages:
    """The runs that are needed, those that are finished, and where their pages are from `folder`."""

    folder: Path
    needed: list[Cell]
    finished: list[Cell]

    def first(self, arm: str, rate: float) -> Cell:
        """Return an arm's run at a rate, of its first finished seed."""
        return next(cell for cell in self.finished if (cell.arm, cell.learning_rate) == (arm, rate))

    def of(self, arm: str, rate: float) -> str:
        return self._address(self.first(arm, rate))

    def list(self, arm: str, rate: float) -> list[tuple[int, str | None]]:
        """Return the seeds of a point, and the address of each run's page; None for a run that is not finished."""
        cells = [cell for cell in self.needed if (cell.arm, cell.learning_rate) == (arm, rate)]
        return [(cell.seed, self._address(cell) if cell in self.finished else None) for cell in cells]

    def _address(self, cell: Cell) -> str:
        return Path(os.path.relpath(cell.run.report, self.folder)).as_posix()


def _draw(results: Results, links: Links) -> dict[str, Chart]:
    arms = results.arms
    charts = {f"{task}-by-rate": draw_scores_by_rate(arms, task, links) for task in results.tests}
    charts |= {"validation-loss": draw_validation_by_rate(arms, links), "training-loss": draw_losses(arms)}
    prices = (
        ("forgetting", "forgetting, nats per token", _forgetting),
        ("memory", "peak memory, GB", _memory),
        ("time", "training, minutes", _minutes),
    )
    for task in results.tests:
        for name, what, price in prices:
            if chart := draw_pareto(arms, price, what, task, links):
                charts[f"{task}-by-{name}"] = chart
    return charts


def _read(task: str, results: Results, pages: _Pages, base: Target | None) -> list[Reading]:
    """A task's items as the base and each arm at its best rate, its first seed, answered them."""
    if not has_samples(task):
        return []
    targets = {"base": (base, pages.finished[0])} if base else {}
    for arm in results.arms:
        cell = pages.first(arm.name, arm.best.learning_rate)
        if task in arm.best.scores:
            targets[arm.name] = (target_of_run(cell.run), cell)
    folders = {
        who: locate_samples(target, task, cell.run.recipe.evaluation)[0] for who, (target, cell) in targets.items()
    }
    return read_task(task, folders)


def _forgetting(point: Point) -> float | None:
    return point.forgetting.mean if point.forgetting else None


def _memory(point: Point) -> float:
    return point.costs["peak_memory"] / 1e9


def _minutes(point: Point) -> float:
    return point.costs["seconds"] / 60
