"""The processes of one launch: `accelerate launch` or `torchrun` started them, and each runs the same command."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from milora.method.errors import MiloraError

if TYPE_CHECKING:
    from accelerate import PartialState

# How long the others wait while one works alone: over its last weight, or the main one over its measurements. A process
# that dies is no matter of waiting: its launcher ends the others at once.
PATIENCE = timedelta(hours=3)


def count_processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this is the only process, or the first of its launch."""
    return os.environ.get("RANK", "0") == "0"


def processes() -> "PartialState":
    """The processes of this launch, joined; accelerate joins those of a CPU only when told that it is one."""
    import torch  # heavy, and one process alone may have no need of them
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)


def wait_for_all() -> None:
    """Return once every process of the launch has come here."""
    if count_processes() > 1:
        processes().wait_for_everyone()


@contextmanager
def fail_together() -> Iterator[None]:
    """Do something on every process, or on some; where it fails on one, its error is raised on all.

    Without it the others would wait for one that is gone, and complain of that. Processes must not wait for each other
    inside.
    """
    failure = None
    try:
        yield
    except MiloraError as error:
        if count_processes() == 1:
            raise
        failure = error.message, error.hint
    if count_processes() > 1:
        import torch.distributed as dist

        failures: list[tuple[str, str] | None] = [None] * processes().num_processes
        dist.all_gather_object(failures, failure)
        for failed in failures:
            if failed:
                raise MiloraError(*failed)


def name_engine() -> str:
    """Return what shares the model out: ddp, which keeps it whole on each process, fsdp1, fsdp2, or zero1 to zero3."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        return f"zero{os.environ.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '')}"
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        return f"fsdp{os.environ.get('FSDP_VERSION', '1')}"
    return "ddp"


def list_engines() -> dict[str, str]:
    """Return the names of the shipped configurations of `accelerate launch`, and what their first line says."""
    folder = files("milora").joinpath("engines")
    configurations = sorted(folder.iterdir(), key=lambda path: path.name)
    return {
        path.name.removesuffix(".yaml"): path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        for path in configurations
    }


def locate_engine(name: str) -> Path:
    """Return the path of a shipped configuration.

    Raises:
        MiloraError: there is none of this name.
    """
    if name not in list_engines():
        raise MiloraError(f"there is no engine {name!r}", f"shipped are {', '.join(list_engines())}")
    return Path(str(files("milora"))) / "engines" / f"{name}.yaml"
