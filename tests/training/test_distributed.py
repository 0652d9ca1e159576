"""Two processes on CPUs (gloo) give what one gives, under every engine that is shipped, started as users start it.

What cannot be seen here: NCCL, more than one node, the time and memory of a GPU.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from milora import MiloraError
from milora.evaluation.target import resolve_target
from milora.models.base import load_tokenizer
from milora.models.embedded import EMBEDDED
from milora.run.directory import create_run
from milora.run.launch import list_launchers, locate_launcher
from milora.run.recipe import load_recipe
from milora.run.sections import ModelSection
from milora.training.prepare import locate
from milora.training.train import train
from tests.launch_on_cpu import start


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> str:
    """Two epochs of 6 rows in batches of 4: their last steps are not full. A step is two passes on each process."""
    folder = tmp_path_factory.mktemp("recipe")
    tokenizer = load_tokenizer(ModelSection(name=EMBEDDED))
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    path = folder / "small.yaml"
    path.write_text(
        f"""extends: quickstart
name: small
model: {{name: {folder / "model"}, dtype: float32}}
adapter: {{rank: 4, target_modules: [q_proj, v_proj, down_proj]}}
data: {{rows: 6, validation_rows: 4}}
training: {{max_steps: null, epochs: 2, batch_size: 4, micro_batch_size: 1, save_steps: 1}}
evaluation: {{limit: 2, batch_size: 1, max_new_tokens: 2}}
"""
    )
    return str(path)


@pytest.fixture(scope="module")
def alone(recipe, tmp_path_factory) -> Path:
    """The run of one process."""
    return _train_alone(recipe, tmp_path_factory.mktemp("alone"))


def _train_alone(recipe: str, runs: Path) -> Path:
    run = create_run(locate(load_recipe(recipe), runs))
    train(run)
    return run.path


def _read(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def _assert_same(found: Path, expected: Path) -> None:
    mine, one = (json.loads((run / "training.json").read_text()) for run in (found, expected))
    assert (mine["processes"], one["processes"]) == (2, 1)
    losses, expected_losses = ([entry["loss"] for entry in training["losses"]] for training in (mine, one))
    assert len(losses) == mine["steps"] == one["steps"] == 4
    assert max(abs(a - b) for a, b in zip(losses, expected_losses, strict=True)) < 1e-4
    assert mine["weight_change"] == pytest.approx(one["weight_change"], rel=1e-4)
    assert mine["parameters"] == one["parameters"]
    adapter, expected_adapter = _read(found), _read(expected)
    assert adapter.keys() == expected_adapter.keys()
    for name, tensor in adapter.items():
        if "initial" in name:
            assert torch.equal(tensor, expected_adapter[name])
        else:
            assert torch.allclose(tensor, expected_adapter[name], atol=1e-4)


@pytest.fixture(scope="module")
def partitioned(tmp_path_factory) -> Path:
    """ZeRO-3 that leaves no parameter whole: by default it does those of fewer than 100 000 numbers."""
    folder = tmp_path_factory.mktemp("zero3")
    settings = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}
    sizes = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size", "gradient_clipping")
    (folder / "zero3.json").write_text(json.dumps({**settings, **dict.fromkeys(sizes, "auto")}))
    (folder / "zero3.yaml").write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: DEEPSPEED\n"
        f"deepspeed_config: {{deepspeed_config_file: {folder / 'zero3.json'}, zero3_init_flag: false}}\n"
    )
    return folder / "zero3.yaml"


@pytest.mark.parametrize("engine", ["ddp", "fsdp2", "zero2", "zero3", "partitioned"])
def test_killed_and_started_again_it_ends_as_one_process_does(engine, recipe, alone, tmp_path, request):
    if engine not in ("ddp", "fsdp2"):
        pytest.importorskip("deepspeed", reason="pip install 'milora[distributed]'")
    configuration = request.getfixturevalue("partitioned") if engine == "partitioned" else locate_launcher(engine)
    command = ["train", recipe, "--runs", str(tmp_path / "runs")]
    launch = start(configuration, command, tmp_path)
    while not list(tmp_path.glob("runs/*/checkpoints/checkpoint-1/complete.json")):
        assert launch.processes[0].is_alive(), launch.said[0].read_text()
        time.sleep(0.01)
    launch.kill()
    checkpoint = next((tmp_path / "runs").glob("*/checkpoints/*/complete.json")).parent
    assert resolve_target(str(checkpoint)).load().peft_config  # as `milora eval` opens it, its base certified

    if engine == "ddp":
        shutil.copytree(tmp_path / "runs", tmp_path / "fewer")
        fewer = _train_alone(recipe, tmp_path / "fewer")
        assert all(torch.allclose(tensor, _read(fewer)[name], atol=1e-4) for name, tensor in _read(alone).items())
    else:
        with pytest.raises(
            MiloraError, match="by 2 processes, and these are 1 under ddp.*launch it as it was launched"
        ):
            _train_alone(recipe, tmp_path / "runs")

    start(configuration, command, tmp_path).wait()
    (run,) = (tmp_path / "runs").iterdir()
    _assert_same(run, alone)
    assert json.loads((run / "training.json").read_text())["resumed_at"] >= 1
    assert not [file for file in run.rglob("*") if file.suffix in (".pt", ".bin", ".pth")]


def test_processes_with_long_and_short_rows_make_as_many_passes(recipe, tmp_path):
    """FSDP gathers weights in each pass: a process that needs fewer passes than another would wait for it forever.

    Of twelve rows one is long: next to it, its process would fit all rows into one pass, and the other needs two.
    """
    rows = [{"question": f"{number} + 1?", "answer": "one " * (40 if number == 5 else 2)} for number in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = [f"data.name={tmp_path / 'rows.jsonl'}", "data.rows=12", "data.validation_rows=0"]
    changed = [*data, "training.batch_size=12", "training.micro_batch_size=3", "training.epochs=4"]
    run = create_run(locate(load_recipe(recipe, changed), tmp_path / "alone"))
    train(run)
    start(locate_launcher("fsdp2"), ["train", recipe, *changed, "--runs", str(tmp_path / "runs")], tmp_path).wait()
    _assert_same(next((tmp_path / "runs").iterdir()), run.path)


def test_run_says_and_writes_everything_once(recipe, alone, tmp_path):
    launch = start(locate_launcher("ddp"), ["run", recipe, "--runs", str(tmp_path / "runs")], tmp_path)
    launch.wait()
    (run,) = (tmp_path / "runs").iterdir()
    said = "".join(path.read_text() for path in launch.said)
    assert said.count("report ") == said.count("exported ") == 1
    _assert_same(run, alone)
    exported = load_file(run / "export" / "lora" / "adapter_model.safetensors")
    # ΔW = s·[B − B₀, B₀] [A; A − A₀], with s = 1
    adapter = _read(alone)
    for name in [name for name in exported if "lora_A" in name]:
        A, A0 = adapter[name], adapter[name.replace("lora_A", "lora_initial_A")]
        assert torch.allclose(exported[name], torch.cat([A, A - A0]), atol=1e-4)
    assert (run / "report.html").is_file()


def test_an_error_on_both_ends_both_and_is_said_once(recipe, tmp_path):
    arguments = ["train", recipe, "training.batch_size=5", "--runs", str(tmp_path / "runs")]
    launch = start(locate_launcher("ddp"), arguments, tmp_path)
    for process in launch.processes:
        process.join(100)
        assert process.exitcode == 2
    _assert_one_error(launch.said[0].read_text(), "training.batch_size 5 is that of all 2 processes together")


def test_an_error_on_one_ends_all_processes_and_is_said_once(recipe, tmp_path):
    """By torch's own launcher; each process is in the folder that its rank names."""
    for rank in ("0", "1"):
        (tmp_path / rank).mkdir()
    (tmp_path / "0" / "rows.jsonl").write_text('{"question": "1", "answer": "2"}\n' * 20)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    command += ["bash", "-c", 'cd $RANK && exec "$@"', "bash", sys.executable, "-m", "milora"]
    command += ["train", recipe, "data.name=./rows.jsonl", "--runs", str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode != 0
    _assert_one_error(done.stderr, "the file does not exist")


def _assert_one_error(said, message):
    lines = [line for line in said.splitlines() if line.startswith(("error: ", "hint: "))]
    assert len(lines) == 2 and message in lines[0], said


FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.mark.parametrize(
    ("environment", "overrides", "message"),
    [
        ({"WORLD_SIZE": "3"}, [], "batch_size 4 is that of all 3 processes together.*batch_size=6"),
        ({"WORLD_SIZE": "2"}, ["batch_size=12", "micro_batch_size=4"], "each of 2 .* has 6 .*set .*micro_batch_size=3"),
        (FSDP2, ["adapter.method=adalora"], "AdaLoRA reads whole gradients, which fsdp2"),
        (FSDP2, ["model.quantization=nf4"], "fsdp2 does not shard quantized weights"),
        ({"ACCELERATE_USE_FSDP": "true"}, [], "FSDP's first version is not supported"),
    ],
)
def test_refused(environment, overrides, message, recipe, tmp_path, monkeypatch):
    changes = [key if "." in key else f"training.{key}" for key in overrides]
    run = create_run(locate(load_recipe(recipe, changes), tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(MiloraError, match=message):
        train(run)


def test_every_engine_is_listed():
    assert list(list_launchers()) == ["ddp", "fsdp2", "zero2", "zero3"]


def test_a_signal_to_one_process_stops_all_after_the_same_step(recipe, tmp_path):
    arguments = ["train", recipe, "training.epochs=20", "--runs", str(tmp_path)]
    launch = start(locate_launcher("ddp"), arguments, tmp_path)
    while not list(tmp_path.glob("small-*/checkpoints/checkpoint-2/complete.json")):
        assert launch.processes[0].exitcode is None, launch.said[0].read_text()
        time.sleep(0.01)
    os.kill(launch.processes[1].pid, signal.SIGTERM)
    for process in launch.processes:
        process.join(100)
        assert process.exitcode == 143
    said = launch.said[0].read_text()
    (saved,) = re.findall(r"stopped: .*/(checkpoint-\d+) is saved\nto go on: run the same command again", said)
    again = start(locate_launcher("ddp"), arguments, tmp_path)
    again.wait()
    assert f"resuming at step {saved.removeprefix('checkpoint-')}" in again.said[0].read_text()
