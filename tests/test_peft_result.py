"""A finished run as a result of PEFT's method comparison: the keys that PEFT's code reads, and who ran it."""

import json
import runpy
import shutil
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "peft_result.py"
# What method_comparison/processing.py reads of each file.
READ = {
    "run_info": ("experiment_name", "peft_branch", "created_at", "total_time"),
    "train_info": (
        "status",
        "train_time",
        "file_size",
        *(f"accelerator_memory_{what}" for what in ("reserved_avg", "max", "reserved_99th")),
    ),
    "meta_info": ("package_info", "system_info"),
}
WORDS = ("transformers", "peft", "datasets", "bitsandbytes", "torch")

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture
def write(monkeypatch, tmp_path):
    def write(*arguments):
        out = tmp_path / "result.json"
        monkeypatch.setattr("sys.argv", [str(SCRIPT), *map(str, arguments), "--out", str(out)])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return json.loads(out.read_text())

    return write


def test_a_run_that_was_not_scored_is_refused(finished, write):
    with pytest.raises(Exception, match="was not scored on gsm8k under these settings"):
        write(finished[1])


def test_it_has_what_peft_reads_and_says_who_ran_it(finished, write, call, data_dir, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished[1], run)
    few = ["evaluation.tasks=[gsm8k]", "evaluation.limit=2", "evaluation.max_new_tokens=4"]
    code, _, err = call("eval", run, *few, f"evaluation.data_dir={data_dir}")
    assert code == 0, err
    result = write(run, *few, f"evaluation.data_dir={data_dir}")
    for part, keys in READ.items():
        assert not [key for key in keys if key not in result[part]], part
    assert not [word for word in WORDS if f"{word}-version" not in result["meta_info"]["package_info"]]
    assert "not PEFT's maintainers" in result["run_info"]["run_by"] and result["run_info"]["peft_branch"] == "milora"
    assert result["run_info"]["peft_config"]["peft_type"] == "LORA"
    assert result["run_info"]["train_config"]["optimizer_kwargs"] == {"lr": 1e-3, "weight_decay": 0.0}
    training, test = json.loads((run / "training.json").read_text()), result["train_info"]["metrics"][-1]
    assert test["step"] == 8 and test["train samples"] == 32 and 0 <= test["test accuracy"] <= 1
    assert test["train loss"] == pytest.approx(sum(one["loss"] for one in training["losses"]) / 8)
    assert result["train_info"]["num_trainable_params"] == training["parameters"]["trainable"]
    assert result["meta_info"]["milora"]["scored"] == 2
