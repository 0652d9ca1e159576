"""What ends a process from outside: Ctrl-C, SIGTERM, with which schedulers do it, and the end of its parent."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from milora.run.launch import count_processes, is_main_process

NOTICE = "stopping{0}; the same signal once more ends the process at once\n"


class Interrupted(BaseException):
    """A signal told the process to stop; `kept` says what is kept of its work.

    It is not a KeyboardInterrupt, which typer takes for itself.
    """

    def __init__(self, number: int, kept: str) -> None:
        super().__init__(kept)
        self.number = number
        self.kept = kept


def end_with(parent: int) -> None:
    """Exit from now on when the process that started this one is gone, however it ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def on_signal(react: Callable[[int], None], numbers: Sequence[int], when: str = "") -> Iterator[None]:
    """Within the block, call `react` at the first of these signals; the second one ends the process at once.

    In a launch every signal is only noted: a launcher passes a Ctrl-C on to processes that have had it already, and
    kills those that do not end in time. `when` says in the notice when the process will stop.
    """

    def handle(number: int, _: FrameType | None) -> None:
        if count_processes() == 1:
            for each in numbers:
                signal.signal(each, signal.SIG_DFL)
        if is_main_process():
            os.write(2, NOTICE.format(when).encode())  # a stream cannot be used here if the signal came while it wrote
        react(number)

    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
