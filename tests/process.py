"""`milora` in processes of their own, forked from one that has imported everything: that takes longer than a test."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

from milora.__main__ import main

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "tests.launch_on_cpu",
        "milora.pipeline",
        "milora.evaluation.chat.local",
        "milora.models.init",
        "milora.training.trainer",
        "lm_eval.evaluator",
        "tests.frozen",  # the last one
    ]
)


@dataclass(frozen=True)
class Started:
    """A running command; what it prints goes to two files of `folder`."""

    arguments: list[str]
    process: BaseProcess
    folder: tempfile.TemporaryDirectory[str]

    def is_running(self) -> bool:
        return self.process.exitcode is None

    def kill(self) -> int | None:
        self.process.kill()
        return self.wait().returncode

    def wait(self) -> subprocess.CompletedProcess[str]:
        self.process.join()
        printed = [(Path(self.folder.name) / name).read_text() for name in ("out", "err")]
        self.folder.cleanup()
        return subprocess.CompletedProcess(self.arguments, self.process.exitcode or 0, *printed)


def start_milora(*arguments: object, forks_runs: bool = True) -> Started:
    """Start `milora ARGUMENTS`, with the environment and in the folder of now.

    The runs of a comparison are forked from its process, or are processes that import everything, as users have them.
    """
    words = list(map(str, arguments))
    folder = tempfile.TemporaryDirectory(prefix="printed-")
    for name in ("out", "err"):
        (Path(folder.name) / name).touch()
    process = CONTEXT.Process(target=_run, args=(words, dict(os.environ), str(Path.cwd()), folder.name, forks_runs))
    process.start()
    return Started(words, process, folder)


def run_milora(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `milora ARGUMENTS`; what it printed and its exit code."""
    return start_milora(*arguments).wait()


def _run(arguments: list[str], environment: dict[str, str], cwd: str, printed: str, forks_runs: bool) -> None:
    if forks_runs:
        from milora.comparison import schedule

        schedule.subprocess = SimpleNamespace(run=_run_forked)
    os.chdir(cwd)
    with (Path(printed) / "out").open("w") as out, (Path(printed) / "err").open("w") as err:
        _enter(arguments, environment, out.fileno(), err.fileno())


def _run_forked(
    command: list[str], *, stdout: IO[str], stderr: IO[str], env: dict[str, str], check: bool
) -> subprocess.CompletedProcess[str]:
    """Run `python -m milora ARGUMENTS` as `subprocess.run` does, without its imports."""
    arguments = (command[3:], env, stdout.fileno(), stderr.fileno())
    process = multiprocessing.get_context("fork").Process(target=_enter_and_leave, args=arguments)
    process.start()
    process.join()
    return subprocess.CompletedProcess(command, process.exitcode or 0)


def _enter_and_leave(*arguments: Any) -> None:
    """Leave at once: an orderly exit would wait for the threads of the comparison, which are not in this process.

    A process that `subprocess` starts does not inherit files, and with them the locks of a comparison that is killed.
    """
    for file in Path("/proc/self/fd").iterdir():
        if file.is_symlink() and file.readlink().name == ".lock":
            os.close(int(file.name))
    try:
        _enter(*arguments)
    except SystemExit as stopped:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(stopped.code or 0))


def _enter(arguments: list[str], environment: dict[str, str], out: int, err: int) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.argv = ["milora", *arguments]
    main()
