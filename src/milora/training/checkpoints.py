"""Checkpoints that training can resume from."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from milora.method.errors import MiloraError
from milora.run.directory import CHECKPOINT, RecordFolder, RunDirectory, is_whole, step_of
from milora.run.environment import list_versions
from milora.run.launch import any_process, count_processes, is_main_process, name_launcher, wait_for_all
from milora.run.recipe import Recipe
from milora.run.records import CheckpointMark


class CompletionMark(TrainerCallback):
    """Marks each checkpoint once all processes have written all of it."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        wait_for_all()
        if is_main_process():
            checkpoint = Path(str(args.output_dir)) / f"{CHECKPOINT}{state.global_step}"
            files = sorted(str(file.relative_to(checkpoint)) for file in checkpoint.rglob("*") if file.is_file())
            mark = CheckpointMark(name_launcher(), count_processes(), list_versions(), files)
            RecordFolder(checkpoint).write(mark)


class StopAtSignal(TrainerCallback):
    """Once a signal was noted, saves a checkpoint at the end of the step, on all processes, and stops there.

    After the last step there is nothing to stop. `stopped` says whether training ended before it for this reason.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.stopped = False

    def note(self, number: int) -> None:
        self.signal = number

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        if any_process(self.signal is not None) and state.global_step < state.max_steps:
            self.stopped = control.should_save = control.should_training_stop = True


def can_resume(recipe: Recipe) -> bool:
    """Whether a run continues from its checkpoints: AdaLoRA starts over, because PEFT does not save its allocator."""
    return recipe.adapter.method != "adalora"


def find_checkpoint(run: RunDirectory, planned: int) -> Path | None:
    """Return the last checkpoint that training can resume from, None if there is none.

    Others are deleted, so that the trainer's rotation does not count them: a checkpoint that a killed process left
    half-written or half-deleted, and that of the last step, whether `planned` or the one at which training stopped
    early: resumed there, the trainer takes one step more.

    Raises:
        MiloraError: the checkpoint was written under another launcher, by other versions of the libraries, or by a
            different number of processes that sharded its state.
    """
    if is_main_process():
        for path in run.checkpoints.glob(f"{CHECKPOINT}*"):
            if not is_whole(path) or step_of(path) >= planned or _has_stopped_early(path):
                shutil.rmtree(path)
    wait_for_all()
    last = run.last_checkpoint()
    if last:
        _check_launch(last, RecordFolder(last).read(CheckpointMark))
    return last


def _check_launch(checkpoint: Path, mark: CheckpointMark) -> None:
    launcher, processes = name_launcher(), count_processes()
    if mark.launcher != launcher or (mark.processes != processes and launcher != "ddp"):
        raise MiloraError(
            f"{checkpoint} was written under {mark.launcher} by {mark.processes} processes, "
            f"and these are {processes} under {launcher}",
            f"launch it as it was launched, or delete {checkpoint.parent} to start over",
        )
    current = list_versions()
    others = [f"{name} {version}" for name, version in mark.versions.items() if current.get(name) != version]
    if others:
        raise MiloraError(
            f"{checkpoint} was written with {', '.join(others)}, and resuming with other versions would mix the two",
            f"install what it was written with, or delete {checkpoint.parent} to start over",
        )


def _has_stopped_early(checkpoint: Path) -> bool:
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    stopping = state.stateful_callbacks.get("EarlyStoppingCallback")
    if stopping is None:
        return False
    patience: int = stopping["args"]["early_stopping_patience"]
    return bool(stopping["attributes"]["early_stopping_patience_counter"] >= patience)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what each library raises when a disk is full into one error that names the path.

    Raises:
        MiloraError: the path could not be written.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        raise MiloraError(
            f"{path} cannot be written: {str(error).splitlines()[0]}",
            "free some disk space and run the same command again: it resumes from the last whole checkpoint",
        ) from error
