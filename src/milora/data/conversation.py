"""A conversation: what a row of any data set becomes before anything else is done with it."""

from dataclasses import dataclass, field
from typing import Any, Literal, Self

from milora.method.errors import MiloraError

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of text."""

    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """A picture, by the path of its file."""

    path: str


Part = Text | Image


@dataclass(frozen=True, slots=True)
class Message:
    """What one side says in one turn."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The message as text.

        Raises:
            MiloraError: it contains a picture.
        """
        if any(isinstance(part, Image) for part in self.parts):
            raise MiloraError("a message contains a picture, and this template writes text only", "use other rows")
        return self.words

    @property
    def words(self) -> str:
        """The message's text without its pictures."""
        return "".join(part.text for part in self.parts if isinstance(part, Text))

    @property
    def images(self) -> tuple[str, ...]:
        """The paths of the message's pictures."""
        return tuple(part.path for part in self.parts if isinstance(part, Image))


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in order, and the `fields` that a benchmark's graders read (a program's tests, say).

    A question and its answer are a conversation of one turn.
    """

    messages: tuple[Message, ...]
    fields: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of_turn(cls, question: str, answer: str, **fields: str) -> Self:
        """Return the conversation in which `question` is answered by `answer`."""
        return cls((Message("user", (Text(question),)), Message("assistant", (Text(answer),))), fields)

    @property
    def prompt(self) -> tuple[Message, ...]:
        """Everything before the last message, which is the answer."""
        return self.messages[:-1]

    @property
    def images(self) -> tuple[str, ...]:
        """The paths of all pictures, in order."""
        return tuple(path for message in self.messages for path in message.images)

    @property
    def question(self) -> str:
        """The text of the last message that is not the answer, without pictures."""
        return self.messages[-2].words

    @property
    def answer(self) -> str:
        """The text of the last message."""
        return self.messages[-1].text

    def to_row(self) -> dict[str, Any]:
        """Return the conversation as a row of a `datasets.Dataset`; see `from_row`."""
        return {
            "messages": [
                {"role": message.role, "parts": [_part_to_row(part) for part in message.parts]}
                for message in self.messages
            ],
            "fields": [{"name": name, "value": value} for name, value in self.fields.items()],
        }

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Self:
        """Return the conversation that `to_row` wrote."""
        messages = tuple(
            Message(message["role"], tuple(_part_from_row(part) for part in message["parts"]))
            for message in row["messages"]
        )
        return cls(messages, {entry["name"]: entry["value"] for entry in row["fields"]})


def _part_to_row(part: Part) -> dict[str, str]:
    return {"text": part.text, "image": ""} if isinstance(part, Text) else {"text": "", "image": part.path}


def _part_from_row(row: dict[str, str]) -> Part:
    return Image(row["image"]) if row["image"] else Text(row["text"])
