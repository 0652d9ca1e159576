"""Two processes of one launch on CPUs, under any engine that `accelerate launch` knows, without its start-up time.

accelerate shares a model out among accelerators alone: here CPUs pass for them. The processes are forked from one that
has imported everything.
"""

import os
import socket
import sys
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch.distributed.run
from accelerate import PartialState
from accelerate.commands.launch import launch_command, launch_command_parser
from accelerate.utils import DistributedType

from milora.__main__ import main
from tests.process import CONTEXT

SHARING = {"ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"}


@dataclass(frozen=True)
class Launch:
    """Two running processes; what they say is in `said`."""

    processes: list[BaseProcess]
    said: list[Path]

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def wait(self) -> None:
        for process, said in zip(self.processes, self.said, strict=True):
            process.join(200)
            assert process.exitcode == 0, said.read_text()


def start(configuration: Path, arguments: list[str], folder: Path) -> Launch:
    """Start `milora ARGUMENTS` as `accelerate launch --config_file CONFIGURATION --num_processes 2` would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**_environment(configuration), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    processes, said = [], []
    for rank in range(2):
        said.append(folder / f"said-{rank}.txt")
        mine = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
        processes.append(CONTEXT.Process(target=_run, args=(mine, arguments, said[-1])))
        processes[-1].start()
    return Launch(processes, said)


def _environment(configuration: Path) -> dict[str, str]:
    """What `accelerate launch` itself sets for its processes."""
    found: dict[str, str] = {}
    before = dict(os.environ)
    options = ["--config_file", str(configuration), "--num_processes", "2", "--main_process_port", "0", "-m", "milora"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.distributed.run, "run", lambda _: found.update(os.environ))
        launch_command(launch_command_parser().parse_args(options))
    return {name: value for name, value in found.items() if before.get(name) != value}


def _run(environment: dict[str, str], arguments: list[str], said: Path) -> None:
    os.environ.update(environment)
    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    if not SHARING.isdisjoint(environment):
        PartialState.__init__ = _join_as_accelerators
    if "ACCELERATE_USE_DEEPSPEED" in environment:
        import deepspeed.ops

        # Else it compiles shared-memory collectives, for a minute; gloo's do.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    sys.argv = ["milora", *arguments]
    main()


_join = PartialState.__init__


def _join_as_accelerators(self: PartialState, cpu: bool = False, **options: Any) -> None:
    _join(self, cpu=True, **options)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_XPU
