"""What a server says of a model that it serves, and what it takes."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import openai
from openai.types import Completion

from milora.method.errors import MiloraError
from milora.method.files import format_json

TIMEOUT = 600.0
RETRIES = 5
# Off, whatever the server's defaults or the model's generation_config say; keys of vLLM's and llama.cpp's own.
PENALTIES = {"repetition_penalty": 1.0, "min_p": 0.0, "min_tokens": 0, "repeat_penalty": 1.0, "dry_multiplier": 0.0}
PROBE = [1, 2, 3]  # tokens of any vocabulary
REFUSED = (400, 422)
TELLING = (
    "root",
    "parent",
    "max_model_len",
    "meta",
)  # of vLLM's and llama.cpp's entries; the rest changes or is a name
SAYS_NOTHING = "fp_ollama"  # the fingerprint of all of Ollama's models


@dataclass(frozen=True, slots=True)
class Served:
    """A model at a server: what tells it from others, the length of its context if that is said, and what it takes.

    `identity` is None if the server says nothing but the model's name. `extra` are parameters that it takes beside
    OpenAI's.
    """

    identity: str | None
    context: int | None
    takes_tokens: bool
    takes_beams: bool
    extra: dict[str, Any]


def connect(url: str) -> openai.OpenAI:
    """Return a client of the server at `url`; an OPENAI_API_KEY in the environment is sent."""
    key = os.environ.get("OPENAI_API_KEY", "none")
    return openai.OpenAI(base_url=url, api_key=key, timeout=TIMEOUT, max_retries=RETRIES)


@cache
def ask_server(url: str, model: str) -> Served:
    """Return what the server at `url` says of `model`: asked once, by one completion of one token.

    Raises:
        MiloraError: no server answers, or it does not serve the model, or does not complete text.
    """
    client = connect(url).with_options(max_retries=1)  # a wrong address is said at once
    try:
        entry = _find_entry(client, url, model)
        properties = _ask_llama(client, url, "props")
        adapters = _ask_llama(client, url, "lora-adapters")
        takes_tokens, extra, fingerprint = _probe(client, url, model)
    except openai.OpenAIError as error:
        raise MiloraError(
            f"no completions server answers at {url}: {error}", "start one, see docs/evaluation.md"
        ) from error
    says = {key: entry[key] for key in TELLING if entry.get(key)}
    says |= {key: properties[key] for key in ("model_path", "build_info") if properties.get(key)}
    slots = properties.get("default_generation_settings", {}).get("n_ctx")
    if adapters:
        says["adapters"] = adapters
    if fingerprint not in (None, SAYS_NOTHING):
        says["system_fingerprint"] = fingerprint
    lengths = [length for length in (entry.get("max_model_len"), slots) if length]
    how = {"prompts": "tokens" if takes_tokens else "text", "penalties": "off" if extra else "not said"}
    return Served(
        identity=format_json(dict(sorted(says.items())) | how | {"context": min(lengths, default=None)})
        if says
        else None,
        context=min(lengths, default=None),
        takes_tokens=takes_tokens,
        takes_beams=entry.get("owned_by") == "vllm",
        extra=extra,
    )


def complete_greedily(
    client: openai.OpenAI,
    model: str,
    prompt: list[int] | str,
    max_tokens: int,
    *,
    stops: Sequence[str] = (),
    number: int = 1,
    extra: Mapping[str, Any],
) -> Completion:
    """Ask for a completion by the most probable tokens, without sampling or penalties."""
    return client.completions.create(
        model=model,
        prompt=prompt,
        max_tokens=max_tokens,
        stop=list(stops) or None,
        n=number,
        temperature=0.0,
        top_p=1.0,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        extra_body=extra,
    )


def list_models(client: openai.OpenAI) -> dict[str, dict[str, Any]]:
    """Return what a server's /models says of each model, by name; {} if the page is not such a list.

    `client.models.list()` fails with an AttributeError on a page that is not JSON.
    """
    found = client.get("/models", cast_to=object)
    entries = found.get("data") if isinstance(found, dict) else None
    return {entry["id"]: entry for entry in entries or ()}


def _find_entry(client: openai.OpenAI, url: str, model: str) -> dict[str, Any]:
    served = list_models(client)
    if model not in served:
        raise MiloraError(
            f"the server at {url} serves {', '.join(served) or 'nothing'}, not {model}",
            f"start it with --served-model-name or --lora-modules {model}=…",
        )
    return served[model]


def _ask_llama(client: openai.OpenAI, url: str, page: str) -> Any:
    """Return a page that llama.cpp's server has beside /v1, {} from others."""
    address = f"{url.rstrip('/').removesuffix('/v1')}/{page}"
    try:
        found = client.get(address, cast_to=object)
    except openai.APIStatusError:
        return {}
    return found if isinstance(found, (dict, list)) else {}


def _probe(client: openai.OpenAI, url: str, model: str) -> tuple[bool, dict[str, Any], str | None]:
    """Return whether prompts can be tokens, which extra parameters are taken, and the answer's fingerprint.

    A server that counts other tokens than it was given adds some, such as a second BOS.
    """
    ways: list[tuple[list[int] | str, dict[str, Any]]]
    ways = [(PROBE, PENALTIES), (PROBE, {}), ("Hello", PENALTIES), ("Hello", {})]
    for prompt, extra in ways:
        try:
            answer = complete_greedily(client, model, prompt, 1, extra=extra)
        except openai.APIStatusError as error:
            if error.status_code not in REFUSED:
                raise
            continue
        takes_tokens = not isinstance(prompt, str)
        if takes_tokens and answer.usage and answer.usage.prompt_tokens != len(PROBE):
            continue
        return takes_tokens, extra, answer.system_fingerprint
    raise MiloraError(f"the server at {url} refuses to complete text", "evaluate with a server of /v1/completions")
