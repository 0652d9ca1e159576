"""`milora runs`: what is where, how it goes on, and two runs side by side."""

import json

import pytest

from milora.run.directory import create_run
from milora.run.recipe import load_recipe
from milora.training.prepare import locate
from tests.made_runs import ENVIRONMENT, diverge, make_run, make_scores


@pytest.fixture
def made(tmp_path):
    """A trained run, a reported one, one that diverged, and one that has only started; by their names."""

    def make(*overrides):
        return locate(load_recipe("quickstart", [*overrides]), tmp_path / "runs")

    runs = {
        "trained": make_run(make("seed=7")),
        "reported": make_run(make("adapter.rank=8", "training.learning_rate=0.0005"), seconds_per_step=100.0),
    }
    runs["reported"].report.write_text("")
    for name, grades in (("trained", [1, 1, 0, 0]), ("reported", [1, 0, 1, 1])):
        make_scores(runs[name], grades)
    runs["diverged"] = make("training.learning_rate=0.5")
    diverge(runs["diverged"], 3, 0.5)
    runs["started"] = make("adapter.rank=4")
    runs["started"].write(ENVIRONMENT)
    create_run(runs["started"])
    return runs


def test_each_run_has_rate_seed_time_and_how_it_goes_on(made, call):
    code, out, err = call("runs", "runs")
    assert code == 0, err
    head, *lines = out.splitlines()
    assert head.split("  ")[0] == "run" and head.endswith("next")
    row = {line.split()[0]: line for line in lines}
    expected = {
        "trained": ["trained", "0.001", "7", "2.0 s", "2.000 → 1.000", "milora run runs/{}"],
        "reported": [
            "reported",
            "0.0005",
            "0",
            "3 min 20 s",
            "arithmetic 75.0 %",
            "adapter.rank=8",
            "runs/{}/report.html",
        ],
        "diverged": ["failed: diverged at step 3", "milora run runs/{}/recipe.yaml training.learning_rate=0.2"],
        "started": ["started", "0.001", "–", "milora run runs/{}"],
    }
    for name, parts in expected.items():
        line = row[made[name].path.name]
        assert all(part.format(made[name].path.name) in line for part in parts), line
        assert line.endswith(parts[-1].format(made[name].path.name))
    assert "learning_rate=0.0005" not in out and "seed=" not in out  # they have columns


def test_what_a_diverged_run_is_told_to_go_on_with_is_a_recipe(made, call, tmp_path):
    _, out, _ = call("runs", "runs")
    command = next(line for line in out.splitlines() if "diverged" in line).partition("milora run ")[2]
    recipe = load_recipe(*[part if number == 0 else [part] for number, part in enumerate(command.split())])
    assert recipe.training.learning_rate == 0.2 and recipe.parent == "quickstart"


def test_json_has_numbers_as_numbers(made, call):
    code, out, err = call("runs", "--json")
    assert code == 0, err
    found = {run["run"]: run for run in json.loads(out)}
    trained, diverged = (found[made[name].path.name] for name in ("trained", "diverged"))
    assert (trained["learning_rate"], trained["seed"], trained["seconds"]) == (0.001, 7, 2.0)
    assert trained["held_out_loss"] == [2.0, 1.0] and trained["settings"]["adapter.rank"] == 16
    assert trained["scores"]["arithmetic"]["metrics"]["corrected"]["value"] == 0.5
    assert diverged["seconds"] is None and diverged["scores"] == {}


def test_two_runs_side_by_side(made, call):
    code, out, err = call("runs", made["trained"].path, made["reported"].path)
    assert code == 0, err
    rows = [line.split("  ") for line in out.splitlines()]
    cells = {row[0]: [cell.strip() for cell in row[1:] if cell.strip()] for row in rows}
    assert cells["learning rate"] == ["0.001", "0.0005"] and cells["seed"] == ["7", "0"]
    assert cells["time"] == ["2.0 s", "3 min 20 s"] and cells["adapter.rank"] == ["16", "8"]
    assert "data.name" not in out  # the same
    one, other = made["trained"].path.name, made["reported"].path.name
    assert out.endswith(f"arithmetic: of 4 items 1 are right only in {one}, 2 only in {other}\n")
    assert json.loads(call("runs", made["trained"].path, made["reported"].path, "--json")[1])[1]["run"] == other


def test_what_is_not_a_run_is_refused(made, call, tmp_path):
    code, _, err = call("runs", made["trained"].path, tmp_path)
    assert code == 2 and f"{tmp_path} is not a run directory" in err and len(err.splitlines()) == 2
    code, _, err = call("runs", tmp_path / "absent")
    assert code == 2 and "contains no run directory" in err
