"""Messages → text, token ids, and a mask of what is trained, through a chat template in Jinja."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from milora.data.conversation import Message
from milora.method.errors import MiloraError

PRIVATE_USE = range(0xF0000, 0xFFFFE)  # characters without a meaning: they stand for control tokens in rendering
Shared = TypeVar("Shared", str, list[int])
OTHER_TEMPLATE = "use other rows, or a named template such as data.template=tulu"


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids, and for each whether its prediction is trained: the assistant's turns and the token that ends them."""

    ids: list[int]
    trained: list[bool]


def render_turns(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], jinja: str | None = None) -> str:
    """Return the prompt: the messages, up to where the assistant's next answer starts.

    `jinja` is the template, None: the tokenizer's own.
    """
    return _render(tokenizer, _as_dicts(messages), jinja, prompt=True)


def tokenize_turns(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], jinja: str | None = None
) -> list[int]:
    """Return the prompt as tokens; a control token's text inside a message is tokenized as the ordinary text it is."""
    dicts, texts = _neutralize(tokenizer, _as_dicts(messages))
    return _tokenize(tokenizer, _render(tokenizer, dicts, jinja, prompt=True), texts)


def encode_turns(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], jinja: str | None = None) -> Encoded:
    """Return the messages as tokens, and which of them are trained.

    The whole conversation must begin with the prompt of each answer, in text and in tokens. The answer ends where the
    whole conversation and the one that ends on it stop being alike, or before: after its control token.

    Raises:
        MiloraError: the template refuses the messages or leaves out a part of one, or what is trained cannot be told
            from what is not.
    """
    dicts, texts = _neutralize(tokenizer, _as_dicts(messages))
    whole = _render(tokenizer, dicts, jinja)
    _check_order(dicts, whole)
    ids = _tokenize(tokenizer, whole, texts)
    trained = [False] * len(ids)
    for index, entry in enumerate(dicts):
        if entry["role"] != "assistant":
            continue
        before = _render(tokenizer, dicts[:index], jinja, prompt=True)
        through = whole if entry is dicts[-1] else _render(tokenizer, dicts[: index + 1], jinja)
        if not whole.startswith(before):
            raise MiloraError(
                "the model's chat template rewrites earlier turns of a conversation, or begins an answer otherwise in "
                "a prompt (with a thought, say), so that a prompt is not what was trained",
                OTHER_TEMPLATE,
            )
        _check_order([entry], _common(whole, through)[len(before) :])
        start = _tokenize(tokenizer, before, texts)
        if ids[: len(start)] != start:
            raise MiloraError(
                f"the tokenizer joins {before[-10:]!r} at the end of a prompt with the answer that follows",
                OTHER_TEMPLATE,
            )
        alike = ids if through == whole else _common(ids, _tokenize(tokenizer, through, texts))
        end = _end_of_turn(tokenizer, ids, len(start), len(alike))
        trained[len(start) : end] = [True] * (end - len(start))
    return Encoded(ids, trained)


@lru_cache(maxsize=4)
def find_training_template(tokenizer: PreTrainedTokenizerBase, _: str) -> str | None:
    """Return TRL's form of the tokenizer's chat template, which keeps earlier turns as they are, or None."""
    from trl.chat_template_utils import get_training_chat_template  # slow to import, and few templates need it

    try:
        return get_training_chat_template(tokenizer)
    except ValueError:
        return None


def _as_dicts(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.text} for message in messages]


def _render(
    tokenizer: PreTrainedTokenizerBase, dicts: list[dict[str, str]], jinja: str | None, *, prompt: bool = False
) -> str:
    try:
        return str(
            tokenizer.apply_chat_template(dicts, chat_template=jinja, tokenize=False, add_generation_prompt=prompt)
        )
    except TemplateError as error:  # templates refuse some orders of roles, and some refuse system messages
        roles = ", ".join(entry["role"] for entry in dicts)
        raise MiloraError(
            f"the model's chat template refuses a conversation of {roles}: {error}", OTHER_TEMPLATE
        ) from error


def _neutralize(
    tokenizer: PreTrainedTokenizerBase, dicts: list[dict[str, str]]
) -> tuple[list[dict[str, str]], dict[str, str]]:
    """Put a character of private use in the place of each control token's text inside a message.

    Returns the messages, and what each character stands for; it is empty if no message has such a text.
    """
    control = _control_texts(tokenizer)
    used = "".join(entry["content"] for entry in dicts)
    if not any(text in used for text in control):
        return dicts, {}
    free = (chr(code) for code in PRIVATE_USE if chr(code) not in used)
    places = dict(zip(control, free, strict=False))
    for text in control:
        dicts = [{**entry, "content": entry["content"].replace(text, places[text])} for entry in dicts]
    return dicts, {place: text for text, place in places.items()}


def _tokenize(tokenizer: PreTrainedTokenizerBase, rendered: str, texts: dict[str, str]) -> list[int]:
    if not texts:
        ids: list[int] = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        return ids
    ids = []
    for piece in re.split(f"([{''.join(texts)}])", rendered):
        options = {"split_special_tokens": True} if piece in texts else {}
        ids += tokenizer(texts.get(piece, piece), add_special_tokens=False, **options)["input_ids"]
    return ids


def _common(first: Shared, second: Shared) -> Shared:
    """What both begin with."""
    if first[: len(second)] == second:
        return second
    length = next((place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
    return first[: min(len(first), len(second)) if length is None else length]


def _control_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts of the tokenizer's control tokens, longest first, so that none hides a longer one."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return sorted({*tokenizer.all_special_tokens, *added}, key=lambda text: (-len(text), text))


def _check_order(dicts: list[dict[str, str]], rendered: str) -> None:
    """Raise unless the messages are in the text, one after the other. Templates may change white space."""
    text, place = "".join(rendered.split()), 0
    for entry in dicts:
        wanted = "".join(entry["content"].split())
        place = text.find(wanted, place)
        if place < 0:
            raise MiloraError(
                f"the model's chat template leaves out or rewrites a part of a message of the {entry['role']}: "
                f"{entry['content'][:60]!r}",
                OTHER_TEMPLATE,
            )
        place += len(wanted)


def _end_of_turn(tokenizer: PreTrainedTokenizerBase, ids: list[int], start: int, end: int) -> int:
    """Return where an answer ends: after its last control token (`<|im_end|>`), not after white space behind it."""
    added = tokenizer.added_tokens_decoder
    special = {*tokenizer.all_special_ids, *(token for token, content in added.items() if content.special)}
    last = next((place for place in range(end - 1, start - 1, -1) if ids[place] in special), None)
    if last is None or str(tokenizer.decode(ids[last + 1 : end])).strip():
        raise MiloraError(
            "the model's chat template does not end an answer with a control token, or not with the same one once a "
            "turn follows, so that the model would not learn to stop",
            "use a named template such as data.template=tulu, which ends answers with EOS",
        )
    return last + 1
