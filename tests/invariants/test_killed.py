"""Invariant 6: a run that is killed at any moment resumes to the same result.

Broken by: seeds set after the adapter, a checkpoint without optimizer or random state, a half-written checkpoint that
counts as complete, results that are written before they are complete.
"""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

MOMENTS = {
    "training": "checkpoints/checkpoint-2/complete.json",
    "the last step": "checkpoints/checkpoint-8/complete.json",
    "after training": "training.json",
    "evaluation": "evaluation/base/arithmetic/*/scores.json",
}


def _start(recipe: str, runs: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "milora", "run", recipe, "--runs", str(runs)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _result(runs: Path) -> dict[str, bytes]:
    (run,) = runs.iterdir()
    files = [run / folder / "adapter_model.safetensors" for folder in ("adapter", "export/lora")]
    files += run.glob("evaluation/*/arithmetic/*/samples.jsonl")
    assert len(files) == 4
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def undisturbed(small_recipe, tmp_path_factory):
    runs = tmp_path_factory.mktemp("undisturbed")
    assert _start(small_recipe, runs).wait() == 0
    return _result(runs)


def test_killed_at_each_critical_moment(small_recipe, undisturbed, tmp_path):
    for moment in MOMENTS:
        process = _start(small_recipe, tmp_path)
        while not list(tmp_path.glob(f"*/{MOMENTS[moment]}")):
            assert process.poll() is None, f"the run ended before it could be killed at {moment}"
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -9
        if moment == "training":
            (run,) = tmp_path.iterdir()
            half = run / "checkpoints" / "checkpoint-7"
            half.mkdir()
            (half / "adapter_model.safetensors").write_bytes(b"half-written")
    assert _start(small_recipe, tmp_path).wait() == 0
    assert _result(tmp_path) == undisturbed


def test_killed_at_ten_random_moments(small_recipe, undisturbed, tmp_path):
    moments = random.Random(0)
    for _ in range(10):
        process = _start(small_recipe, tmp_path)
        time.sleep(moments.uniform(2, 12))
        process.kill()
        process.wait()
    assert _start(small_recipe, tmp_path).wait() == 0
    assert _result(tmp_path) == undisturbed


@pytest.mark.parametrize("method", ["olora", "lora_ga", "adalora", "full"])
def test_every_method_resumes_to_the_same_weights(method, small_recipe, tmp_path):
    """The methods cover initial factors, factors from gradients, a schedule of ranks, and no adapter."""

    def start(runs: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "milora", "train", small_recipe, f"adapter.method={method}", "--runs", runs]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def trained(runs: Path) -> bytes:
        (file,) = [file for folder in ("adapter", "model") for file in runs.glob(f"*/{folder}/*.safetensors")]
        return file.read_bytes()

    assert start(tmp_path / "undisturbed").wait() == 0
    process = start(tmp_path / "killed")
    while not list(tmp_path.glob("killed/*/checkpoints/checkpoint-2/complete.json")):
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert start(tmp_path / "killed").wait() == 0
    assert trained(tmp_path / "killed") == trained(tmp_path / "undisturbed")


def test_a_checkpoint_of_other_versions_is_refused(small_recipe, tmp_path):
    process = _start(small_recipe, tmp_path)
    while not list(tmp_path.glob("*/checkpoints/checkpoint-2/complete.json")):
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    process.kill()
    process.wait()
    for mark in tmp_path.glob("*/checkpoints/checkpoint-*/complete.json"):
        written = json.loads(mark.read_text())
        written["versions"]["torch"] = "1.13.1"
        mark.write_text(json.dumps(written))
    command = [sys.executable, "-m", "milora", "train", small_recipe, "--runs", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "was written with torch 1.13.1" in done.stderr and "to start over" in done.stderr
