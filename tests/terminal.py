"""`milora` in a real terminal: what is shown, what is typed, and Ctrl-C."""

import os
import pty
import re
import select
import sys
import termios
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

from milora.__main__ import main
from tests.process import CONTEXT

CTRL_C, CTRL_D = "\x03", "\x04"


class Terminal:
    """A running `milora ARGUMENTS` at its own pseudo-terminal of 80 columns; used in a `with`."""

    def __init__(self, *arguments: object) -> None:
        words = list(map(str, arguments))
        self.controller, slave = pty.openpty()
        termios.tcsetwinsize(slave, (24, 80))
        process = CONTEXT.Process(target=_run, args=(words, dict(os.environ), str(Path.cwd()), os.ttyname(slave)))
        self.process: BaseProcess = process
        process.start()
        self.slave, self.shown, self.read = slave, "", 0

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()
        os.close(self.slave)
        os.close(self.controller)

    def type(self, text: str) -> None:
        os.write(self.controller, text.encode())

    def expect(self, pattern: str, timeout: float = 120) -> None:
        """Wait until the pattern is shown after what was expected before."""
        until = time.monotonic() + timeout
        while not (found := re.compile(pattern).search(self.shown, self.read)):
            ready, _, _ = select.select([self.controller], [], [], max(0, until - time.monotonic()))
            assert ready, f"{pattern!r} is not shown in {timeout} s after {self.shown[self.read :]!r}"
            self.shown += os.read(self.controller, 65536).decode(errors="replace")
        self.read = found.end()

    def wait(self) -> int | None:
        """The exit code, once the process has ended."""
        self.process.join(60)
        return self.process.exitcode


def _run(arguments: list[str], environment: dict[str, str], cwd: str, terminal: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    os.setsid()
    device = os.open(terminal, os.O_RDWR)  # of which a process without a terminal becomes the owner
    for descriptor in (0, 1, 2):
        os.dup2(device, descriptor)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.argv = ["milora", *arguments]
    main()
