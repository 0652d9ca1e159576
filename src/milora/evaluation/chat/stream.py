"""Tokens → text as they are made."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from milora.evaluation.chat.speaker import Write

UNFINISHED = "\ufffd"  # what a tokenizer decodes to while a character lacks tokens


class Stream(BaseStreamer):
    """Writes what `generate` makes, up to a token of `ends` or a text of `stops`.

    What may yet become one of `stops`, or another character, is held back.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, ends: Collection[int], stops: Sequence[str], write: Write
    ) -> None:
        self.tokenizer, self.ends, self.stops, self.write = tokenizer, ends, stops, write
        self.tokens: list[int] | None = None  # None until the prompt, which comes first, has passed
        self.written, self.ended = 0, False

    def put(self, value: Tensor) -> None:
        if self.tokens is None:
            self.tokens = []
        elif not self.ended:
            self._take(int(value.item()), self.tokens)

    def end(self) -> None:
        """Write what was held back, if the answer did not end by itself."""
        if not self.ended:
            self._write(self._decode(self.tokens or []))

    def _take(self, token: int, tokens: list[int]) -> None:
        self.ended = token in self.ends
        if not self.ended:
            tokens.append(token)
        text = self._decode(tokens)
        stops = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        if stops or self.ended:
            self.ended = True
            self._write(text[: min(stops, default=None)])
        else:
            self._write(text[: len(text) - self._held(text)])

    def _write(self, text: str) -> None:
        if len(text) > self.written:
            piece, self.written = text[self.written :], len(text)
            self.write(piece)

    def _held(self, text: str) -> int:
        """How many characters at the end may change, or begin a stop."""
        starts = [length for stop in self.stops for length in range(1, len(stop)) if text.endswith(stop[:length])]
        return max([len(text) - len(text.rstrip(UNFINISHED)), *starts])

    def _decode(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))


class EndOf(StoppingCriteria):
    """Stops `generate` where a stream ended."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Any:
        return torch.full((len(input_ids),), self.stream.ended, device=input_ids.device)
