"""A comparison's results → the files that people open."""

from dataclasses import asdict
from pathlib import Path

from omegaconf import OmegaConf
from pydantic_core import to_jsonable_python

from milora.comparison.grid import Grid
from milora.comparison.results import Arm, Results
from milora.method.files import write_bytes, write_json, write_text
from milora.report.figures import (
    Drawing,
    draw_losses,
    draw_pareto,
    draw_scores_by_rate,
    draw_validation_by_rate,
)
from milora.report.run_page import render
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
    """Write index.html, results.json, points.csv, table.md, table.tex and the pictures; return the page."""
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
    drawings = _draw(results)
    for name, drawing in drawings.items():
        write_text(folder / f"{name}.svg", drawing.svg)
        write_bytes(folder / f"{name}.png", drawing.png)
    headers, rows = tabulate_arms(results, comparison)
    grid_headers, grid_rows = tabulate_points(results, comparison)
    page = render(
        "comparison.html.jinja",
        comparison=comparison,
        shows=shows,
        cannot=cannot,
        headers=headers,
        rows=rows,
        floor=results.floor,
        intervals=INTERVALS,
        tests={task: tabulate_tests(found) for task, found in results.tests.items()},
        drawings=list(drawings.values()),
        grid_headers=grid_headers,
        grid_rows=grid_rows,
        plan=OmegaConf.to_yaml(OmegaConf.create(plan)),
        environment=next(cell.run for cell in grid.cells if cell.is_finished).read(Environment),
    )
    write_text(folder / "index.html", page)
    return folder / "index.html"


def _draw(results: Results) -> dict[str, Drawing]:
    arms = results.arms
    drawings = {"validation-loss": draw_validation_by_rate(arms), "training-loss": draw_losses(arms)}
    for task in results.tests:
        drawings[f"{task}-by-rate"] = draw_scores_by_rate(arms, task)
        for name, what, price in (
            ("forgetting", "forgetting, nats per token", _forgetting),
            ("memory", "peak memory, GB", _memory),
        ):
            places = {
                arm.name: (paid, 100 * arm.best.scores[task].mean)
                for arm in arms
                if task in arm.best.scores and (paid := price(arm)) is not None
            }
            if places:
                drawings[f"{task}-by-{name}"] = draw_pareto(places, what, task)
    return drawings


def _forgetting(arm: Arm) -> float | None:
    return arm.best.forgetting.mean if arm.best.forgetting else None


def _memory(arm: Arm) -> float:
    return arm.best.costs["peak_memory"] / 1e9
