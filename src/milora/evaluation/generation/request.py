"""What is asked of a model, and what answers."""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Decoding:
    """Greedy search, or beam search with `beams`: at most `max_new_tokens`, cut before any of `stops`."""

    max_new_tokens: int
    stops: tuple[str, ...] = ()
    beams: int = 1


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt as text and as the model's tokens, how it is completed, and the paths of its pictures."""

    text: str
    ids: tuple[int, ...]
    decoding: Decoding
    images: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """What was answered, and whether it ended at EOS or a stop, not at the limit of new tokens."""

    text: str
    ended: bool


class Backend(Protocol):
    """Completes prompts."""

    def complete(self, requests: Sequence[Request], done: Container[int]) -> Iterator[dict[int, Completion]]:
        """Yield completions by the index of their request, as they are made; those that are `done` may be left out."""
