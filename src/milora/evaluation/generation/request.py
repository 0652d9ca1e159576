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
    """A prompt as text, and how it is completed."""

    prompt: str
    decoding: Decoding


class Backend(Protocol):
    """Completes prompts."""

    def complete(self, requests: Sequence[Request], done: Container[int]) -> Iterator[dict[int, str]]:
        """Yield completions by the index of their request, as they are made; those that are `done` may be left out."""

    def count_tokens(self, text: str) -> int | None:
        """Return how many tokens a text has, None if the backend cannot say."""
