"""`milora` in processes of their own, forked from one that has imported everything: that takes longer than a test."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

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


def start_milora(*arguments: object) -> Started:
    """Start `milora ARGUMENTS`, with the environment and in the folder of now."""
    words = list(map(str, arguments))
    folder = tempfile.TemporaryDirectory(prefix="printed-")
    for name in ("out", "err"):
        (Path(folder.name) / name).touch()
    process = CONTEXT.Process(target=_run, args=(words, dict(os.environ), str(Path.cwd()), folder.name))
    process.start()
    return Started(words, process, folder)


def run_milora(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `milora ARGUMENTS`; what it printed and its exit code."""
    return start_milora(*arguments).wait()


def _run(arguments: list[str], environment: dict[str, str], cwd: str, printed: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for descriptor, name in ((1, "out"), (2, "err")):
        with (Path(printed) / name).open("w") as file:
            os.dup2(file.fileno(), descriptor)
    sys.argv = ["milora", *arguments]
    main()
