"""A conversation of several turns: its turns, what fits, and what was said when an answer was stopped."""

from collections.abc import Callable
from dataclasses import dataclass, field

from milora.data.conversation import Message, Role, Text
from milora.evaluation.chat.speaker import Speaker, Write


@dataclass(slots=True)
class Session:
    """One speaker's side of a chat; speakers that are compared have one each, as their answers differ."""

    speaker: Speaker
    system: str | None = None
    turns: list[Message] = field(default_factory=list)  # questions and answers by turns

    def ask(self, question: str, write: Write, notify: Callable[[str], None]) -> bool:
        """Write the answer in pieces, and remember the turn; return whether the answer ended by itself.

        What was said remains, also if the answer breaks off or is interrupted. The oldest turns are forgotten if the
        model's context has no room for them, of which `notify` is told.
        """
        asked = message("user", question)
        forgotten = 0
        while self.turns and not self.speaker.fits(self._prompt(asked)):
            del self.turns[:2]
            forgotten += 1
        if forgotten:
            notify(f"the model's context is full: the oldest turns are forgotten ({forgotten})")
        said: list[str] = []

        def record(piece: str) -> None:
            said.append(piece)
            write(piece)

        try:
            return self.speaker.answer(self._prompt(asked), record)
        finally:
            if said and self.speaker.has_turns:
                self.turns += [asked, message("assistant", "".join(said))]

    def _prompt(self, asked: Message) -> list[Message]:
        system = [message("system", self.system)] if self.system else []
        return [*system, *self.turns, asked]


def message(role: Role, text: str) -> Message:
    """Return a message of one text."""
    return Message(role, (Text(text),))
