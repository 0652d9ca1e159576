"""What comes in on stdin → what is answered on stdout."""

import os
import sys
from collections.abc import Sequence

from milora.evaluation.chat.lines import answer_lines
from milora.evaluation.chat.speaker import Speaker
from milora.evaluation.chat.terminal import converse, notify


def talk(speakers: Sequence[Speaker], system: str | None) -> None:
    """Chat with the speakers: a conversation in a terminal, otherwise a JSON object for each line.

    Raises:
        MiloraError: lines were not answered.
    """
    speaker = speakers[-1]
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        notify(speaker.about)
        try:
            answer_lines(sys.stdin.buffer, sys.stdout.buffer, speakers, system)
        except BrokenPipeError:  # its reader has enough; what was not written must not be tried again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    notify(f"{speaker.about}; /help lists the commands")
    if not speaker.has_turns:
        notify("the template has room for one question: each is answered without those before it")
    converse(speakers, system)
