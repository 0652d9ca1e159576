"""Completions by a model in this process."""

from collections.abc import Container, Iterator, Sequence
from itertools import groupby
from typing import Literal

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from milora.data.processor import Pictures
from milora.data.templates import ChatTemplate
from milora.evaluation.generation.generator import Generator
from milora.evaluation.generation.neutral import ends_of, neutralize
from milora.evaluation.generation.request import Completion, Decoding, Request
from milora.method.errors import MiloraError
from milora.run.launch import processes

AUTOMATIC = {"cpu": 32, "cuda": 64}  # prompts at a time, by device


class LocalBackend:
    """A model in this process: in eval mode, batches sorted by length, left-padded under an attention mask.

    Batches are cut from all requests, whatever is done and however many processes share them: a completion does not
    depend on when or where it was made. `batch_size="auto"` starts large; a batch that runs out of memory is halved.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int | Literal["auto"],
        pictures: Pictures | None = None,
    ) -> None:
        if model.training:
            raise MiloraError("the model is in training mode, in which dropout is on", "call model.eval() first")
        self.processes = processes()
        device = self.processes.device
        self.batch_size = AUTOMATIC.get(device.type, 32) if batch_size == "auto" else batch_size
        self.ends = ends_of(model, tokenizer)
        # lm-eval ties the embeddings once more, which fails where PEFT trains the rows of single tokens.
        model.tie_weights = lambda: None  # type: ignore[assignment]
        self.harness = Generator(
            pretrained=model.to(device),
            tokenizer=tokenizer,
            batch_size=self.batch_size,
            add_bos_token=tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id],
            backend="causal",
        )
        self.harness.pictures = pictures
        self.end_turns_of(None)

    def end_turns_of(self, chat: ChatTemplate | None) -> None:
        """From now on let completions end at the end of turn of this template, None: at the model's own ends alone."""
        neutralize(self.harness.model, list(dict.fromkeys([*self.ends, *([chat.end_of_turn] if chat else [])])))

    def complete(self, requests: Sequence[Request], done: Container[int]) -> Iterator[dict[int, Completion]]:
        def rank(index: int) -> tuple[bool, int, int, int]:
            request = requests[index]
            return bool(request.images), -request.decoding.max_new_tokens, -len(request.ids), index

        order = sorted((index for index, one in enumerate(requests) if one.decoding.max_new_tokens), key=rank)
        alike = (list(group) for _, group in groupby(order, lambda index: _kind(requests[index])))
        batches = [
            part[start : start + self.batch_size] for part in alike for start in range(0, len(part), self.batch_size)
        ]
        for batch in batches[self.processes.process_index :: self.processes.num_processes]:
            if any(index not in done for index in batch):
                yield dict(zip(batch, self._generate([requests[index] for index in batch]), strict=True))

    def _generate(self, batch: list[Request]) -> list[Completion]:
        """Complete requests of the same kind."""
        try:
            images = [path for request in batch for path in request.images]
            return self.harness.complete([request.ids for request in batch], batch[0].decoding, images)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise MiloraError("one prompt alone does not fit into memory", "lower max_new_tokens") from error
        torch.cuda.empty_cache()
        half = len(batch) // 2
        return self._generate(batch[:half]) + self._generate(batch[half:])


def _kind(request: Request) -> tuple[Decoding, bool]:
    """What the requests of a batch have in common: their decoding, and whether they have pictures."""
    return request.decoding, bool(request.images)
