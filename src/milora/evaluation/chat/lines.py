"""A chat in a pipe: prompts by line → JSON by line."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from milora.data.conversation import Message
from milora.data.formats import read_prompt
from milora.data.problems import BadRowError
from milora.evaluation.chat.session import message
from milora.evaluation.chat.speaker import Speaker
from milora.method.errors import MiloraError
from milora.method.files import format_json

HOW = 'write a prompt, {"prompt": …}, or {"messages": […]} on each line'


@dataclass(frozen=True, slots=True)
class Asked:
    """A line's question as it is repeated beside its answer, and as messages."""

    given: dict[str, Any]
    messages: list[Message]


def answer_lines(lines: Iterable[bytes], answers: BinaryIO, speakers: Sequence[Speaker], system: str | None) -> None:
    """Answer each line on its own, and write one JSON object for it at once; empty lines are left out.

    Raises:
        MiloraError: lines were not answered. Each has an object with its `error`, and the others are answered.
    """
    asked = failed = 0
    for line in lines:
        if not line.strip():
            continue
        asked += 1
        given: dict[str, Any] = {"prompt": line.decode(errors="replace").rstrip("\r\n")}
        try:
            question = _read(line, system)
            given = question.given
            found = _answer(question, speakers)
        except MiloraError as error:
            failed += 1
            found = {"error": error.message, "hint": error.hint}
        answers.write(format_json(given | found).encode() + b"\n")
        answers.flush()
    if failed:
        raise MiloraError(f"{failed} of {asked} lines were not answered", "their objects say why, under error")


def _answer(question: Asked, speakers: Sequence[Speaker]) -> dict[str, Any]:
    """The last speaker's answer is `answer`; that of the base before it is `base_answer`."""
    found: dict[str, Any] = {}
    for speaker in speakers:
        pieces: list[str] = []
        ended = speaker.answer(question.messages, pieces.append)
        prefix = "" if speaker is speakers[-1] else f"{speaker.name}_"
        found |= {f"{prefix}answer": "".join(pieces), f"{prefix}ended": ended}
    return found


def _read(line: bytes, system: str | None) -> Asked:
    """A line that starts with a brace is JSON; any other is the prompt itself."""
    try:
        text = line.decode().rstrip("\r\n")
        given = json.loads(text) if text.lstrip().startswith("{") else {"prompt": text}
    except UnicodeDecodeError as error:
        raise MiloraError("the line is not UTF-8 text", "convert it to UTF-8") from error
    except ValueError as error:
        raise MiloraError(f"the line starts with a brace and is not JSON: {error}", HOW) from error
    if len(given.keys() & {"prompt", "messages"}) != 1:
        raise MiloraError("the object needs either prompt or messages", HOW)
    try:
        messages = read_prompt(given)
    except BadRowError as error:
        raise MiloraError(str(error), HOW) from error
    if system and messages[0].role != "system":
        messages.insert(0, message("system", system))
    key = "prompt" if "prompt" in given else "messages"
    return Asked({key: given[key]}, messages)
