"""Completions by a model in this process."""

from collections.abc import Container, Iterator, Sequence
from typing import Any, Literal

import torch
from lm_eval.api.instance import Instance
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from milora.data.templates import ChatTemplate
from milora.evaluation.generation.generator import Generator
from milora.evaluation.generation.request import Decoding, Request
from milora.method.errors import MiloraError
from milora.run.launch import processes

AUTOMATIC = {"cpu": 32, "cuda": 64}  # prompts at a time, by device


class LocalBackend:
    """A model in this process: in eval mode, batches sorted by length, left-padded under an attention mask.

    Batches are cut from all requests, whatever is done and however many processes share them: a completion does not
    depend on when or where it was made. `batch_size="auto"` starts large; a batch that runs out of memory is halved.
    Prompts that a `chat` template rendered have their BOS already, and their answers end at its end of turn.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int | Literal["auto"],
        chat: ChatTemplate | None = None,
    ) -> None:
        if model.training:
            raise MiloraError("the model is in training mode, in which dropout is on", "call model.eval() first")
        self.processes = processes()
        device = self.processes.device
        self.batch_size = AUTOMATIC.get(device.type, 32) if batch_size == "auto" else batch_size
        adds_bos = chat is None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
        if chat is not None:
            _end_with(model, chat.end_of_turn)
        self.harness = Generator(
            pretrained=model.to(device), tokenizer=tokenizer, batch_size=self.batch_size, add_bos_token=adds_bos
        )

    def complete(self, requests: Sequence[Request], done: Container[int]) -> Iterator[dict[int, str]]:
        lengths = [self.count_tokens(request.prompt) for request in requests]
        order = sorted(range(len(requests)), key=lambda index: (-lengths[index], index))
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        for batch in batches[self.processes.process_index :: self.processes.num_processes]:
            if any(index not in done for index in batch):
                yield dict(zip(batch, self._generate([requests[index] for index in batch]), strict=True))

    def count_tokens(self, text: str) -> int:
        return len(self.harness.tok_encode(text))

    def _generate(self, batch: list[Request]) -> list[str]:
        instances = [
            Instance("generate_until", {}, (request.prompt, _as_keywords(request.decoding)), index)
            for index, request in enumerate(batch)
        ]
        try:
            completions: list[str] = self.harness.generate_until(instances, disable_tqdm=True)
            return completions
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise MiloraError("one prompt alone does not fit into memory", "lower max_new_tokens") from error
        torch.cuda.empty_cache()
        half = len(batch) // 2
        return self._generate(batch[:half]) + self._generate(batch[half:])


def _end_with(model: PreTrainedModel | PeftModel, token: int) -> None:
    """Let a token end a completion, beside those that the model's own settings name."""
    config = model.generation_config
    assert config is not None
    ends = config.eos_token_id
    known = ends if isinstance(ends, list) else [] if ends is None else [ends]
    config.eos_token_id = list(dict.fromkeys([*known, token]))


def _as_keywords(decoding: Decoding) -> dict[str, Any]:
    """The harness's generation keywords."""
    return {
        "until": list(decoding.stops),
        "max_gen_toks": decoding.max_new_tokens,
        "do_sample": False,
        "num_beams": decoding.beams,
    }
