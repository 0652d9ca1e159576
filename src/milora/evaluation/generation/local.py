"""Engines: what turns prompts into completions, here a model in this process."""

from collections.abc import Container, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
from lm_eval.api.instance import Instance
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from milora.evaluation.generation.generator import Generator
from milora.method.errors import MiloraError
from milora.run.launch import processes

AUTOMATIC = {"cpu": 32, "cuda": 64}


class Request(NamedTuple):
    """A prompt and its decoding, in the harness' generation keywords."""

    prompt: str
    decoding: dict[str, Any]


class Engine(Protocol):
    """Completes requests, and gives the completions, by index, as they come; what is `done` already may be left out."""

    def complete(self, requests: Sequence[Request], done: Container[int]) -> Iterator[dict[int, str]]: ...


class LocalEngine:
    """A model in this process: in eval mode, batches sorted by length, left-padded under an attention mask.

    Batches are cut from all requests, whatever is done and however many processes share them: a completion does not
    depend on when or where it was made. `batch_size="auto"` starts large; a batch that runs out of memory is halved.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int | Literal["auto"],
    ) -> None:
        if model.training:
            raise MiloraError("the model is in training mode, in which dropout is on", "call model.eval() first")
        self.processes = processes()
        device = self.processes.device
        self.batch_size = AUTOMATIC.get(device.type, 32) if batch_size == "auto" else batch_size
        adds_bos = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
        self.harness = Generator(
            pretrained=model.to(device), tokenizer=tokenizer, batch_size=self.batch_size, add_bos_token=adds_bos
        )

    def complete(self, requests: Sequence[Request], done: Container[int]) -> Iterator[dict[int, str]]:
        lengths = [len(self.harness.tok_encode(request.prompt)) for request in requests]
        order = sorted(range(len(requests)), key=lambda index: (-lengths[index], index))
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        for batch in batches[self.processes.process_index :: self.processes.num_processes]:
            if any(index not in done for index in batch):
                yield dict(zip(batch, self._generate([requests[index] for index in batch]), strict=True))

    def _generate(self, batch: list[Request]) -> list[str]:
        instances = [Instance("generate_until", {}, tuple(request), index) for index, request in enumerate(batch)]
        try:
            completions: list[str] = self.harness.generate_until(instances, disable_tqdm=True)
            return completions
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise MiloraError("one prompt alone does not fit into memory", "lower max_new_tokens") from error
        torch.cuda.empty_cache()
        half = len(batch) // 2
        return self._generate(batch[:half]) + self._generate(batch[half:])
