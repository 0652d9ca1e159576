"""Which step a run keeps."""

import json
import subprocess
import sys

import torch
from safetensors.torch import load_file


def _train(recipe, runs, *overrides):
    command = [sys.executable, "-m", "milora", "train", recipe, *overrides, "--runs", str(runs)]
    done = subprocess.run(command, capture_output=True, text=True)
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
