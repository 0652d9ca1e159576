"""`milora` in a real terminal: what is shown, what is typed, and Ctrl-C."""

import os
import pty
import select
import signal
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

    def expect(self, text: str, timeout: float = 120) -> str:
        """Wait until `text` is shown after what was expected before; return what is shown up to there."""
        until = time.monotonic() + timeout
        while (place := self.shown.find(text, self.read)) < 0:
            ready, _, _ = select.select([self.controller], [], [], max(0, until - time.monotonic()))
            assert ready, f"{text!r} is not shown in {timeout} s after {self.shown[self.read :]!r}"
            self.shown += os.read(self.controller, 65536).decode(errors="replace")
        found = self.shown[self.read : place]
        self.read = place + len(text)
        return found

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
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.argv = ["milora", *arguments]
    main()
