"""Which step a run keeps."""

import json

import pytest
import torch
from safetensors.torch import load_file

from milora import MiloraError
from milora.run.directory import create_run, open_run
from milora.run.recipe import load_recipe
from milora.run.records import Divergence, TrainingRecord
from milora.training import train as training
from milora.training.divergence import check_trained
from milora.training.prepare import locate
from milora.training.train import train
from tests.process import run_milora

EARLY = [
    *("training.learning_rate=0.1", "training.schedule=constant", "adapter.dropout=0", "training.report_to=none"),
    *("training.batch_size=2", "training.max_length=64", "data.validation_rows=2", "training.save_steps=1"),
    *("training.keep=best", "training.early_stopping_patience=2"),
]


def test_stopping_early_keeps_the_best_step_and_resumes_there(small_recipe, tmp_path, monkeypatch):
    def start(runs):
        run = create_run(locate(load_recipe(small_recipe, EARLY), tmp_path / runs))
        train(run)
        return run

    def bytes_of(run):
        return (run.adapter / "adapter_model.safetensors").read_bytes()

    run = start("whole")
    record = run.read(TrainingRecord)
    assert record.steps == record.kept_step + 2 < 8

    with monkeypatch.context() as patch:  # killed after the last checkpoint, before the record
        patch.setattr(training, "record_training", _fail)
        with pytest.raises(RuntimeError, match="killed"):
            start("killed")
    resumed = start("killed")
    assert bytes_of(resumed) == bytes_of(run)
    assert resumed.read(TrainingRecord).steps == record.steps


def _fail(*_):
    raise RuntimeError("killed")


def _train(recipe, runs, *overrides):
    done = run_milora("train", recipe, *overrides, "--runs", runs)
    assert done.returncode == 0, done.stderr
    (run,) = runs.iterdir()
    return json.loads((run / "training.json").read_text()), load_file(run / "adapter" / "adapter_model.safetensors")


def test_best_keeps_the_step_of_the_lowest_held_out_loss(small_recipe, tmp_path):
    # Training that starts well and then diverges: the best step is not the last.
    wild = ["training.learning_rate=0.1", "training.schedule=constant", "training.max_steps=6", "adapter.dropout=0"]
    best, best_adapter = _train(small_recipe, tmp_path / "best", *wild, "training.keep=best")
    last, last_adapter = _train(small_recipe, tmp_path / "last", *wild)
    assert last["kept_step"] == 6 and best["kept_step"] in (2, 4, 6)
    assert best["held_out_loss"][1] <= last["held_out_loss"][1]
    same = all(torch.equal(best_adapter[name], last_adapter[name]) for name in last_adapter)
    assert same == (best["kept_step"] == 6)
    assert best["kept_step"] != 6, "the last step was the best: this test shows nothing"


@pytest.mark.parametrize("logged", [1, 100], ids=["each step", "no step"])
def test_a_run_that_diverges_is_not_trained(small_recipe, tmp_path, logged):
    wild = ["training.learning_rate=1e20", "training.schedule=constant", f"training.log_steps={logged}"]
    done = run_milora("train", small_recipe, *wild, "--runs", tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "training diverged: " in done.stderr and "not finite at step" in done.stderr
    assert "at learning rate 1e+20" in done.stderr and "lower training.learning_rate" in done.stderr
    (run,) = tmp_path.iterdir()
    assert not (run / "training.json").exists() and not (run / "adapter").exists()
    found = open_run(run).read(Divergence)
    assert found.step in (1, 2) and f"at step {found.step}," in done.stderr and found.learning_rate == 1e20


def test_the_last_step_is_looked_at_too():
    """After it there is no gradient and no loss: the weights and the held-out loss themselves."""
    with pytest.raises(MiloraError, match="a trained weight is not finite at step 3, at learning rate 0.1"):
        check_trained({"A": torch.tensor([0.0, torch.nan])}, 1.0, 3, 0.1)
    with pytest.raises(MiloraError, match="the held-out loss is not finite"):
        check_trained({"A": torch.zeros(2)}, float("inf"), 3, 0.1)
    check_trained({"A": torch.full((2,), 3e38)}, None, 3, 0.1)  # whose norm overflows


def test_float16_needs_loss_scaling(small_recipe, tmp_path):
    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator, on which float16 is trained with loss scaling")
    run = create_run(locate(load_recipe(small_recipe, ["model.dtype=float16"]), tmp_path))
    with pytest.raises(MiloraError, match="loss scaling, which needs a GPU"):
        train(run)


@pytest.mark.parametrize("method", ["milora", "lora"])
def test_the_adapter_records_the_revision_of_its_base(small_recipe, tmp_path, method):
    changes = [f"adapter.method={method}", "model.revision=main", "training.max_steps=1", "training.report_to=none"]
    run = create_run(locate(load_recipe(small_recipe, changes), tmp_path))
    train(run)
    assert json.loads((run.adapter / "adapter_config.json").read_text())["revision"] == "main"
