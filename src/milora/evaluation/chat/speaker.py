"""Who answers in a chat."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from milora.data.conversation import Message
from milora.method.errors import MiloraError

Write = Callable[[str], None]  # takes the next piece of an answer


@dataclass(frozen=True, slots=True)
class Sampling:
    """At most `max_new_tokens`, each the most probable one, or with a temperature above 0 a sampled one."""

    max_new_tokens: int
    temperature: float

    def __post_init__(self) -> None:
        if self.temperature and not 0.01 <= self.temperature <= 100:  # beyond, float32 overflows; NaN is refused too
            raise MiloraError(f"--temperature {self.temperature:g} is not 0, or from 0.01 to 100", "0 is greedy search")

    def __str__(self) -> str:
        how = f"sampled at temperature {self.temperature:g}" if self.temperature else "greedy"
        return f"{how}, at most {self.max_new_tokens} new tokens"


class Speaker(Protocol):
    """A model that answers conversations."""

    @property
    def name(self) -> str:
        """What it is called beside others: base, trained, or a server's model."""

    @property
    def about(self) -> str:
        """What it is and how it answers, in words."""

    @property
    def has_turns(self) -> bool:
        """Whether a prompt has room for earlier turns."""

    @property
    def has_system(self) -> bool:
        """Whether a prompt has room for a system prompt."""

    def fits(self, messages: Sequence[Message]) -> bool:
        """Whether the model's context has room for the messages and their answer, as far as that is known."""

    def answer(self, messages: Sequence[Message], write: Write) -> bool:
        """Write the answer in pieces, as it is made; return whether it ended by itself, not at a limit.

        Raises:
            MiloraError: it cannot be answered, or the answer broke off; what was written by then was said.
        """
