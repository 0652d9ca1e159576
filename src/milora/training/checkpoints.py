"""Checkpoints that training can go on from."""

import shutil
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from milora.method.errors import MiloraError
from milora.run.directory import list_versions
from milora.method.files import read_json, write_json
from milora.run.launch import count_processes, is_main_process, name_engine, wait_for_all

COMPLETE = "complete.json"  # says that a checkpoint was written whole, its files, and by what


class CompletionMark(TrainerCallback):
    """Marks each checkpoint once all processes have written all of it."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        wait_for_all()
        if is_main_process():
            checkpoint = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            files = sorted(str(file.relative_to(checkpoint)) for file in checkpoint.rglob("*") if file.is_file())
            write_json(checkpoint / COMPLETE, {**_launch(), "versions": list_versions(), "files": files})


def find_checkpoint(folder: Path, planned: int) -> Path | None:
    """Return the last checkpoint that training can go on from, None if there is none.

    What it cannot go on from is deleted, lest the trainer's own rotation counts it: a checkpoint which a killed process
    left half-written or half-deleted, and the last step's: resumed there, in the middle of an epoch, the trainer takes
    one step more.

    Raises:
        MiloraError: the checkpoint is of another engine, of other versions of the libraries, or of another number of
            processes where its state is shared out among them.
    """
    if is_main_process():
        for path in folder.glob("checkpoint-*"):
            if not _is_whole(path) or step_of(path) >= planned:
                shutil.rmtree(path)
    wait_for_all()
    last = max(folder.glob("checkpoint-*"), key=step_of, default=None)
    if last:
        wrote, now = read_json(last / COMPLETE), _launch()
        is_other_number = wrote["processes"] != now["processes"]
        if wrote["engine"] != now["engine"] or (is_other_number and now["engine"] != "ddp"):
            raise MiloraError(
                f"{last} was written under {wrote['engine']} by {wrote['processes']} processes, "
                f"and these are {now['processes']} under {now['engine']}",
                f"launch it as it was launched, or delete {folder} to start over",
            )
        current = list_versions()
        others = [f"{name} {version}" for name, version in wrote["versions"].items() if current.get(name) != version]
        if others:
            raise MiloraError(
                f"{last} was written with {', '.join(others)}, and going on with other versions would mix the two",
                f"install what it was written with, or delete {folder} to start over",
            )
    return last


def _is_whole(checkpoint: Path) -> bool:
    mark = checkpoint / COMPLETE
    return mark.is_file() and all((checkpoint / name).is_file() for name in read_json(mark)["files"])


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def check_space(folder: Path, model: PreTrainedModel | PeftModel) -> None:
    """Raise unless the disk has room for the run."""
    # A checkpoint holds the factors, as many initial ones and two moments; three may stand at once, then the exports.
    needed = 16 * 4 * model.num_parameters(only_trainable=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise MiloraError(
            f"{folder} has {free / 1e6:.0f} MB of free disk space, and this run may need {needed / 1e6:.0f} MB",
            "free some, lower adapter.rank, or choose another folder with --runs",
        )


def _launch() -> dict[str, object]:
    return {"engine": name_engine(), "processes": count_processes()}
