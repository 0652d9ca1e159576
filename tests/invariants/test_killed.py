"""Invariant 6: a run that is killed at any moment resumes to the same result.

Broken by: seeds set after the adapter, a checkpoint without optimizer or random state, a half-written checkpoint that
counts as complete, results that are written before they are complete.
"""

import json
import random
import time
from pathlib import Path

import pytest

from tests.process import Started, run_milora, start_milora

MOMENTS = {
    "training": "checkpoints/checkpoint-2/complete.json",
    "the last step": "checkpoints/checkpoint-8/complete.json",
    "after training": "training.json",
    "evaluation": "evaluation/base/arithmetic/*/scores.json",
}


def _kill_at(process: Started, runs: Path, moment: str) -> None:
    while not list(runs.glob(f"*/{moment}")):
        assert process.is_running(), f"the run ended before it could be killed at {moment}"
        time.sleep(0.01)
    assert process.kill() == -9


def _assert_same(runs: Path, undisturbed: Path) -> None:
    (run,) = runs.iterdir()
    files = [run / folder / "adapter_model.safetensors" for folder in ("adapter", "export/lora")]
    files += run.glob("evaluation/*/arithmetic/*/samples.jsonl")
    assert len(files) == 4
    for file in files:
        assert file.read_bytes() == (undisturbed / file.relative_to(run)).read_bytes()


def test_killed_at_each_critical_moment(small_recipe, finished, tmp_path):
    for moment in MOMENTS:
        _kill_at(start_milora("run", small_recipe, "--runs", tmp_path), tmp_path, MOMENTS[moment])
        if moment == "training":
            (run,) = tmp_path.iterdir()
            half = run / "checkpoints" / "checkpoint-7"
            half.mkdir()
            (half / "adapter_model.safetensors").write_bytes(b"half-written")
    assert run_milora("run", small_recipe, "--runs", tmp_path).returncode == 0
    _assert_same(tmp_path, finished[1])


def test_killed_at_ten_random_moments(small_recipe, finished, tmp_path):
    moments = random.Random(0)
    for _ in range(10):
        process = start_milora("run", small_recipe, "--runs", tmp_path)
        time.sleep(moments.uniform(0.2, 5))
        process.kill()
    assert run_milora("run", small_recipe, "--runs", tmp_path).returncode == 0
    _assert_same(tmp_path, finished[1])


@pytest.mark.parametrize("method", ["olora", "lora_ga", "adalora", "full"])
def test_every_method_resumes_to_the_same_weights(method, small_recipe, tmp_path):
    """The methods cover initial factors, factors from gradients, a schedule of ranks, and no adapter."""

    command = ["train", small_recipe, f"adapter.method={method}", "--runs"]

    def trained(runs: Path) -> bytes:
        (file,) = [file for folder in ("adapter", "model") for file in runs.glob(f"*/{folder}/*.safetensors")]
        return file.read_bytes()

    assert run_milora(*command, tmp_path / "undisturbed").returncode == 0
    _kill_at(start_milora(*command, tmp_path / "killed"), tmp_path / "killed", MOMENTS["training"])
    assert run_milora(*command, tmp_path / "killed").returncode == 0
    assert trained(tmp_path / "killed") == trained(tmp_path / "undisturbed")


def test_a_checkpoint_of_other_versions_is_refused(small_recipe, tmp_path):
    _kill_at(start_milora("run", small_recipe, "--runs", tmp_path), tmp_path, MOMENTS["training"])
    for mark in tmp_path.glob("*/checkpoints/checkpoint-*/complete.json"):
        written = json.loads(mark.read_text())
        written["versions"]["torch"] = "1.13.1"
        mark.write_text(json.dumps(written))
    done = run_milora("train", small_recipe, "--runs", tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "was written with torch 1.13.1" in done.stderr and "to start over" in done.stderr
