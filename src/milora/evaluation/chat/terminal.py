"""A chat in a terminal: what is typed → answers and commands."""

import signal
import sys
import unicodedata
from collections.abc import Sequence
from contextlib import suppress

from milora.evaluation.chat.session import Session
from milora.evaluation.chat.speaker import Speaker
from milora.method.errors import MiloraError

HELP = """\
/reset         forget the conversation
/system TEXT   set the system prompt from here on; without TEXT, remove it
/help          list the commands
/quit          quit, as do Ctrl-D, and Ctrl-C at the prompt
Ctrl-C in an answer stops it, and keeps what was said. Put a space before a line that starts with a slash and is not a
command."""


def converse(speakers: Sequence[Speaker], system: str | None) -> None:
    """Answer line by line until the user quits."""
    with suppress(ImportError):
        import readline  # noqa: F401  line editing and a history of what was typed

    sessions = [Session(speaker, system) for speaker in speakers]
    # Elsewhere a second Ctrl-C ends the process.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        while _take_line(sessions):
            pass
    except (EOFError, KeyboardInterrupt):
        print()
    finally:
        signal.signal(signal.SIGINT, before)


def _take_line(sessions: Sequence[Session]) -> bool:
    """Do what a line asks for; return whether another one may follow."""
    try:
        line = input("> ")
    except UnicodeDecodeError:
        notify("the line is not text in the terminal's encoding")
        return True
    command, _, text = line.partition(" ")
    if command == "/quit":
        return False
    if command.startswith("/"):
        _obey(command, text.strip(), sessions)
    elif line.strip():
        for index, session in enumerate(sessions):
            if index:
                print()
            if len(sessions) > 1:
                print(f"[{session.speaker.name}]")
            _answer(session, line)
    return True


def notify(text: str) -> None:
    """Print what is not an answer."""
    print(text, file=sys.stderr, flush=True)


def _obey(command: str, text: str, sessions: Sequence[Session]) -> None:
    if command == "/help":
        notify(HELP)
    elif command == "/reset":
        for session in sessions:
            session.turns.clear()
        notify("the conversation starts anew")
    elif command != "/system":
        notify(f"{command} is not a command: the commands are /reset, /system, /help, and /quit")
    elif text and not all(session.speaker.has_system for session in sessions):
        notify("the template has no room for a system prompt: write it into the question")
    else:
        for session in sessions:
            session.system = text or None
        notify("the system prompt is set" if text else "there is no system prompt now")


def _answer(session: Session, question: str) -> None:
    end = None
    try:
        if not session.ask(question, _show, notify):
            end = "the answer was cut at its limit of new tokens"
    except KeyboardInterrupt:
        end = "stopped"
    except MiloraError as error:
        end = f"error: {error.message}\nhint: {error.hint}"
    print(flush=True)
    if end:
        notify(end)


def _show(piece: str) -> None:
    """Print a piece of an answer; control characters, with which it could steer the terminal, are replaced."""
    shown = "".join(
        letter if letter in "\n\t" or unicodedata.category(letter) != "Cc" else "\ufffd" for letter in piece
    )
    encoding = sys.stdout.encoding
    print(shown.encode(encoding, "replace").decode(encoding), end="", flush=True)
