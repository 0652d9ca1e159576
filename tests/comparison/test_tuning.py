"""Which runs a comparison needs when some seeds choose the learning rate for the others; the runs are made."""

import json

import pytest

from milora.comparison.grid import describe_cells, describe_cost, plan_grid
from milora.comparison.plan import load_comparison
from milora.comparison.results import collect_results
from milora.report.comparison_page import write_results
from tests.made_runs import diverge, make_cell

PLAN = {
    "name": "made",
    "recipe": "quickstart",
    "arms": {"LoRA": ["adapter.method=lora"], "MiLoRA": ["adapter.method=milora"]},
    "learning_rates": [1e-4, 1e-3, 1e-2],
    "seeds": [0, 1, 2],
    "tuning_seeds": 2,
}


@pytest.fixture
def grid(tmp_path):
    (tmp_path / "made.yaml").write_text(json.dumps(PLAN))
    return plan_grid(load_comparison(str(tmp_path / "made.yaml")), tmp_path / "runs")


def train(cell, loss):
    make_cell(cell, [0, 1], loss=loss)


def tune(grid, losses):
    """Finish the runs that tune, with the losses {rate: of each seed}; infinite: it diverged."""
    for cell in grid.missing():
        loss = losses[cell.learning_rate][cell.seed]
        if loss == float("inf"):
            diverge(cell.run, 1, cell.learning_rate)
        else:
            train(cell, loss)


def rates_of_others(grid):
    return {cell.arm: cell.learning_rate for cell in grid.needed() if cell.seed == 2}


def test_the_best_of_the_mean_is_chosen(grid):
    assert len(grid.missing()) == 12 and {cell.seed for cell in grid.missing()} == {0, 1}
    assert "14 runs" in describe_cost(grid, 1)
    assert describe_cells(grid).count("  if best") == 6
    tune(grid, {1e-4: [1.0, 4.0], 1e-3: [2.0, 2.0], 1e-2: [3.0, 3.0]})
    assert rates_of_others(grid) == {"LoRA": 1e-3, "MiLoRA": 1e-3}
    assert len(grid.missing()) == 2 and "12 finished, 2 to do" in describe_cost(grid, 1)


def test_the_other_seeds_do_not_choose(grid):
    tune(grid, {1e-4: [1.0, 1.0], 1e-3: [2.0, 2.0], 1e-2: [3.0, 3.0]})
    for cell in grid.missing():
        train(cell, 99.0)
    assert not grid.missing()
    results = collect_results(grid)
    assert results.missing == 0
    assert [(arm.best.learning_rate, arm.best.seeds) for arm in results.arms] == [(1e-4, [0, 1, 2])] * 2
    assert write_results(grid, results).is_file()


def test_runs_of_other_comparisons_at_other_rates_are_not_part_of_it(grid):
    for cell in grid.cells:
        train(cell, {1e-4: 1.0, 1e-3: 2.0, 1e-2: 3.0}[cell.learning_rate])
    results = collect_results(grid)
    assert [point.seeds for arm in results.arms for point in arm.points] == 2 * [[0, 1, 2], [0, 1], [0, 1]]
    assert results.missing == 0


def test_until_an_arm_is_tuned_its_other_seeds_wait(grid):
    *_, last = [cell for cell in grid.missing() if cell.arm == "LoRA"]
    for cell in grid.missing():
        if cell != last:
            train(cell, 1.0 + cell.learning_rate)
    assert rates_of_others(grid) == {"MiLoRA": 1e-4}
    train(last, 0.0)
    assert rates_of_others(grid) == {"LoRA": 1e-2, "MiLoRA": 1e-4}


def test_a_diverged_run_is_not_waited_for_and_its_rate_is_not_chosen(grid):
    tune(grid, {1e-4: [2.0, 2.0], 1e-3: [3.0, 3.0], 1e-2: [0.1, float("inf")]})
    assert rates_of_others(grid) == {"LoRA": 1e-4, "MiLoRA": 1e-4}
    assert collect_results(grid).arms[0].best.learning_rate == 1e-4


def test_of_an_arm_that_always_diverges_no_other_seed_runs(grid):
    tune(grid, {rate: [float("inf")] * 2 for rate in PLAN["learning_rates"]})
    assert rates_of_others(grid) == {} and not collect_results(grid).arms
