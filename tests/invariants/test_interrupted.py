"""Invariant 6, for a run that is told to stop, or that finds no room: it resumes to the same result.

Broken by: a signal that ends the process inside a step, a checkpoint of the last step, a run that counts as trained
because the trainer returned, an earlier checkpoint that is deleted before the next one is whole.
"""

import os
import resource
import signal
import time

import pytest
from transformers import TrainerCallback

from milora.evaluation import posing
from milora.method import factors
from milora.run.directory import create_run
from milora.run.interruption import on_signal
from milora.run.recipe import load_recipe
from milora.training import record
from milora.training import train as training
from milora.training.checkpoints import CompletionMark
from milora.training.prepare import locate

FAST = (
    *("evaluation.tasks=[]", "training.report_to=none", "training.batch_size=2", "training.max_length=64"),
    *("data.rows=16", "data.validation_rows=2"),
)


@pytest.fixture(scope="module")
def undisturbed(small_recipe, tmp_path_factory):
    run = create_run(locate(load_recipe(small_recipe, FAST), tmp_path_factory.mktemp("undisturbed")))
    training.train(run)
    return (run.adapter / "adapter_model.safetensors").read_bytes()


@pytest.fixture
def train(small_recipe, call, tmp_path):
    """Train the small recipe by the CLI; returns exit code, stderr, and the trained bytes if there are any."""

    def train(*overrides):
        code, _, err = call("train", small_recipe, *FAST, *overrides, "--runs", tmp_path / "runs")
        found = sorted((tmp_path / "runs").glob("*/adapter/adapter_model.safetensors"))
        return code, err, found[0].read_bytes() if found else None

    return train


class _Signals(TrainerCallback):
    def __init__(self, step, number):
        self.step, self.number = step, number

    def on_step_begin(self, args, state, control, **_):
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), self.number)


@pytest.fixture
def signal_in_step(monkeypatch):
    """Send a signal inside a step of the next training."""

    def signal_in_step(step, number):
        make = training.make_trainer

        def make_and_add(*arguments):
            trainer = make(*arguments)
            trainer.add_callback(_Signals(step, number))
            monkeypatch.setattr(training, "make_trainer", make)
            return trainer

        monkeypatch.setattr(training, "make_trainer", make_and_add)

    return signal_in_step


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_told_to_stop_saves_its_step(
    train, signal_in_step, undisturbed, small_recipe, tmp_path, number, code
):
    before = signal.getsignal(number)
    signal_in_step(3, number)
    stopped, err, trained = train()
    assert (stopped, trained) == (code, None) and "Traceback" not in err
    (run,) = (tmp_path / "runs").iterdir()
    assert f"stopped: {run}/checkpoints/checkpoint-3 is saved\nto go on: milora train {small_recipe}" in err
    assert not (run / "training.json").exists()
    assert signal.getsignal(number) == before
    code, err, trained = train()
    assert code == 0 and "resuming at step 3" in err
    assert trained == undisturbed


def test_in_the_last_step_there_is_nothing_to_stop(train, signal_in_step, undisturbed, tmp_path):
    signal_in_step(8, signal.SIGINT)
    code, err, trained = train()
    (run,) = (tmp_path / "runs").iterdir()
    assert code == 130 and f"stopped: {run} is trained" in err and trained == undisturbed


def test_what_cannot_resume_says_that_it_starts_over(train, signal_in_step):
    signal_in_step(3, signal.SIGINT)
    code, err, trained = train("adapter.method=adalora")
    assert (code, trained) == (130, None) and "stopped: AdaLoRA's state cannot be saved: the run will start over" in err


def _interrupt(*_, **__):
    if signal.getsignal(signal.SIGINT) != signal.SIG_DFL:  # several threads come here
        os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.5)


def test_interrupted_elsewhere_it_says_one_sentence(finished, small_model, call, monkeypatch, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(posing, "complete_all", _interrupt)
    code, _, err = call("eval", finished[1], "--limit", "2")
    said = "stopped: what is finished is kept\nto go on: milora {}\n"
    assert code == 130 and err.endswith(said.format(f"eval {finished[1]} --limit 2"))
    monkeypatch.setattr(factors, "decompose_weight", _interrupt)
    command = ["init", str(small_model), "--rank", "4", "-o", f"{tmp_path}/a start"]
    code, _, err = call(*command)
    assert code == 130 and err.endswith(said.format(" ".join(command[:-1]) + f" '{tmp_path}/a start'"))
    assert "Traceback" not in err and signal.getsignal(signal.SIGINT) is before


def test_the_second_signal_ends_the_process(monkeypatch):
    noted = []
    with on_signal(noted.append, [signal.SIGTERM]):
        os.kill(os.getpid(), signal.SIGTERM)
        assert noted == [signal.SIGTERM] and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    monkeypatch.setenv("WORLD_SIZE", "2")  # a launcher passes it on, and it comes twice
    with on_signal(noted.append, [signal.SIGTERM]):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert len(noted) == 3


@pytest.fixture
def fill():
    """Let no file of this process grow beyond a few bytes, as on a full disk; undo it by calling the result."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def empty():
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, before[1]))
        return empty

    yield fill
    empty()


def test_a_full_disk_leaves_the_earlier_checkpoint(train, fill, undisturbed, monkeypatch, tmp_path):
    save = CompletionMark.on_save

    def save_and_fill(*arguments, **options):
        save(*arguments, **options)
        fill()

    monkeypatch.setattr(CompletionMark, "on_save", save_and_fill)
    code, err, trained = train()
    fill()()
    (run,) = (tmp_path / "runs").iterdir()
    assert (code, trained) == (2, None) and "Traceback" not in err
    assert f"error: {run}/checkpoints/checkpoint-4 cannot be written: " in err and "hint: free some disk space" in err
    monkeypatch.setattr(CompletionMark, "on_save", save)
    code, err, trained = train()
    assert code == 0 and "resuming at step 2" in err and trained == undisturbed


def test_a_full_disk_at_the_end_loses_no_step(train, fill, undisturbed, monkeypatch, tmp_path):
    save = record._save

    def fill_and_save(*arguments):
        fill()
        return save(*arguments)

    monkeypatch.setattr(record, "_save", fill_and_save)
    code, err, _ = train()
    fill()()
    (run,) = (tmp_path / "runs").iterdir()
    assert code == 2 and f"error: {run}/adapter cannot be written: " in err and not (run / "training.json").exists()
    monkeypatch.setattr(record, "_save", save)
    code, err, trained = train()
    assert code == 0 and "resuming at step 6" in err and trained == undisturbed
