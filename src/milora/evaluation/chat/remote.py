"""A model at an OpenAI-compatible chat server."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx2
import openai

from milora.data.conversation import Message
from milora.evaluation.chat.speaker import Sampling, Write
from milora.evaluation.generation.served import connect, list_models
from milora.method.errors import MiloraError


@dataclass(frozen=True, slots=True)
class ServerSpeaker:
    """Sends the messages to the server, whose own template makes a prompt of them."""

    client: openai.OpenAI
    name: str
    sampling: Sampling
    has_turns: bool = True
    has_system: bool = True

    @property
    def about(self) -> str:
        return f"{self.name} at {self.client.base_url}: {self.sampling}"

    def fits(self, messages: Sequence[Message]) -> bool:
        """Only the server knows; it refuses what does not fit."""
        return True

    def answer(self, messages: Sequence[Message], write: Write) -> bool:
        sent: list[Any] = [{"role": message.role, "content": message.text} for message in messages]
        reason = None
        try:
            with self.client.chat.completions.create(
                model=self.name,
                messages=sent,
                max_tokens=self.sampling.max_new_tokens,
                temperature=self.sampling.temperature,
                stream=True,
            ) as chunks:
                for chunk in chunks:
                    for choice in chunk.choices:
                        reason = choice.finish_reason or reason
                        if choice.delta.content:
                            write(choice.delta.content)
        except (openai.OpenAIError, httpx2.HTTPError) as error:  # the latter where an answer breaks off
            raise MiloraError(
                f"no whole answer from the server: {error}", "ask again, or /reset a long conversation"
            ) from error
        if reason is None:
            raise MiloraError("the server broke the answer off", "ask again")
        return reason != "length"


def open_server(url: str, model: str | None, sampling: Sampling) -> ServerSpeaker:
    """Return `model` at the server `url` (…/v1); without a name, the only one that it serves.

    Raises:
        MiloraError: no server answers, or it does not serve the model, or serves several.
    """
    client = connect(url).with_options(max_retries=1)
    try:
        served = list(list_models(client))
    except openai.NotFoundError:
        served = []
    except openai.OpenAIError as error:
        raise MiloraError(
            f"no chat server answers at {url}: {error}", "check the address, which ends in /v1, and OPENAI_API_KEY"
        ) from error
    if model is None and len(served) == 1:
        (model,) = served
    if model is None:
        what = f"serves {', '.join(served)}" if served else "does not list its models"
        raise MiloraError(f"the server at {url} {what}", "name one with --model")
    if served and model not in served:  # one that lists none says itself what it does not serve
        raise MiloraError(f"the server at {url} serves {', '.join(served)}, not {model}", "name one with --model")
    return ServerSpeaker(client, model, sampling)
