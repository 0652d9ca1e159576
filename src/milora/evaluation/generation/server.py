"""Completions by an OpenAI-compatible endpoint, such as vLLM's."""

import os
from collections.abc import Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import openai

from milora.evaluation.generation.request import Request
from milora.method.errors import MiloraError

TIMEOUT = 600.0
RETRIES = 5


class ServerBackend:
    """Asks `model` at `url` (…/v1), `concurrency` prompts at a time, each until it is answered once.

    Beams are asked for as vLLM takes them (`use_beam_search`, `n`). An OPENAI_API_KEY in the environment is sent.

    Raises:
        MiloraError: no server answers at `url`, or it does not serve `model`.
    """

    def __init__(self, url: str, model: str, concurrency: int = 16) -> None:
        key = os.environ.get("OPENAI_API_KEY", "none")
        self.client = openai.OpenAI(base_url=url, api_key=key, timeout=TIMEOUT, max_retries=RETRIES)
        self.model, self.concurrency = model, concurrency
        try:
            served = [entry.id for entry in self.client.models.list()]
        except openai.OpenAIError as error:
            raise MiloraError(
                f"no completions server answers at {url}: {error}", "start one, see docs/evaluation.md"
            ) from error
        if model not in served:
            raise MiloraError(
                f"the server at {url} serves {', '.join(served)}, not {model}",
                f"start it with --served-model-name or --lora-modules {model}=…",
            )

    def complete(self, requests: Sequence[Request], done: Container[int]) -> Iterator[dict[int, str]]:
        failures: list[openai.OpenAIError] = []
        with ThreadPoolExecutor(self.concurrency) as pool:
            asked = {
                pool.submit(self._ask, request): index for index, request in enumerate(requests) if index not in done
            }
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

    def count_tokens(self, text: str) -> None:
        """A server does not say how it tokenizes."""

    def _ask(self, request: Request) -> str:
        decoding = request.decoding
        extra: dict[str, Any] = {"use_beam_search": True} if decoding.beams > 1 else {}
        answer = self.client.completions.create(
            model=self.model,
            prompt=request.prompt,
            max_tokens=decoding.max_new_tokens,
            stop=list(decoding.stops) or None,
            temperature=0.0,
            n=decoding.beams,
            extra_body=extra,
        )
        return answer.choices[0].text
