"""Completions by an OpenAI-compatible endpoint, such as vLLM's."""

from collections.abc import Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import openai
from transformers import PreTrainedTokenizerBase

from milora.evaluation.generation.request import Completion, Request
from milora.evaluation.generation.served import ask_server, complete_greedily, connect
from milora.method.errors import MiloraError


class ServerBackend:
    """Asks `model` at `url` (…/v1), `concurrency` prompts at a time, each until it is answered once.

    Prompts are sent as the tokens of `tokenizer`, the model's own, so that the server adds no second BOS and reads no
    control token in their text. A server that takes text alone gets text, if it reads the same tokens in it.

    Raises:
        MiloraError: no server answers at `url`, or it does not serve `model`.
    """

    def __init__(self, url: str, model: str, tokenizer: PreTrainedTokenizerBase, concurrency: int = 16) -> None:
        self.served = ask_server(url, model)
        self.client, self.model, self.tokenizer, self.concurrency = connect(url), model, tokenizer, concurrency

    def complete(self, requests: Sequence[Request], done: Container[int]) -> Iterator[dict[int, Completion]]:
        """Yield completions as they are made.

        Raises:
            MiloraError: the server does not search with beams, would read other tokens, or did not answer all prompts.
        """
        missing = {
            index: request
            for index, request in enumerate(requests)
            if index not in done and request.decoding.max_new_tokens
        }
        if not self.served.takes_beams and any(request.decoding.beams > 1 for request in missing.values()):
            raise MiloraError(
                "the task asks for beams, and of servers only vLLM's is known to search with them",
                "leave --backend server out",
            )
        prompts = {index: self._prompt(request) for index, request in missing.items()}
        failures: list[openai.OpenAIError] = []
        with ThreadPoolExecutor(self.concurrency) as pool:
            asked = {pool.submit(self._ask, prompts[index], request): index for index, request in missing.items()}
            for future in as_completed(asked):
                try:
                    yield {asked[future]: future.result()}
                except openai.OpenAIError as error:
                    failures.append(error)
        if failures:
            raise MiloraError(
                f"{len(failures)} of {len(asked)} prompts were not answered: {failures[0]}",
                "what was answered is kept; run the same command again for the rest",
            )

    def _prompt(self, request: Request) -> list[int] | str:
        if self.served.takes_tokens:
            return list(request.ids)
        text, bos = request.text, self.tokenizer.bos_token
        if bos and request.ids[0] == self.tokenizer.bos_token_id:
            text = text.removeprefix(bos)
        read: list[int] = self.tokenizer(text)["input_ids"]
        if read != list(request.ids):
            raise MiloraError(
                f"the server takes prompts as text alone, and would read other tokens in {text[:60]!r} …: a control "
                "token's text in it, or a BOS",
                "use a server that takes tokens, such as vLLM's or llama.cpp's, or leave --backend server out",
            )
        return text

    def _ask(self, prompt: list[int] | str, request: Request) -> Completion:
        decoding = request.decoding
        beams: dict[str, Any] = {"use_beam_search": True} if decoding.beams > 1 else {}
        answer = complete_greedily(
            self.client,
            self.model,
            prompt,
            decoding.max_new_tokens,
            stops=decoding.stops,
            number=decoding.beams,
            extra=self.served.extra | beams,
        )
        choice = answer.choices[0]
        return Completion(choice.text, ended=choice.finish_reason != "length")
