"""The processes of one launch: `accelerate launch` or `torchrun` started them, and each runs the same command."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from milora.method.errors import MiloraError

if TYPE_CHECKING:
    from accelerate import PartialState

LAUNCHERS = Path(__file__).parent / "launchers"

# How long processes wait for one that works alone, on its last weight or on measurements. Nobody waits for a process
# that dies: its launcher ends the others at once.
PATIENCE = timedelta(hours=3)


def count_processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this is the only process, or the first of its launch."""
    return os.environ.get("RANK", "0") == "0"


def processes() -> "PartialState":
    """The processes of this launch, joined; accelerate joins those of a CPU only when told that it is one."""
    import torch  # heavy, and one process alone may not need them
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)


def wait_for_all() -> None:
    """Return once every process of the launch has come here."""
    if count_processes() > 1:
        processes().wait_for_everyone()


def any_process(condition: bool) -> bool:
    """Return whether the condition holds on a process of the launch; every process must call this."""
    if count_processes() == 1:
        return condition
    import torch
    import torch.distributed as dist

    found = torch.tensor(int(condition), device=processes().device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found)


@contextmanager
def fail_together() -> Iterator[None]:
    """Raise on all processes the error that one of them raises inside.

    Otherwise the others would wait for a process that is gone, and report that. Processes must not wait for each other
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


def name_launcher() -> str:
    """Return how the model is spread over processes: ddp (whole on each), fsdp1, fsdp2, or zero1 to zero3."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        return f"zero{os.environ.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '')}"
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        return f"fsdp{os.environ.get('FSDP_VERSION', '1')}"
    return "ddp"


def list_launchers() -> dict[str, str]:
    """Return the names of the shipped configurations of `accelerate launch`, and what their first line says."""
    return {
        path.stem: path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        for path in sorted(LAUNCHERS.glob("*.yaml"))
    }


def locate_launcher(name: str) -> Path:
    """Return the path of a shipped configuration.

    Raises:
        MiloraError: it does not exist.
    """
    if name not in list_launchers():
        raise MiloraError(f"there is no launcher {name!r}", f"choose {', '.join(list_launchers())}")
    return LAUNCHERS / f"{name}.yaml"
