"""Messages → text, token ids, and a mask of what is trained, through a chat template in Jinja."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from milora.data.conversation import Message, Text
from milora.data.processor import Pictures
from milora.method.errors import MiloraError

PRIVATE_USE = range(0xF0000, 0xFFFFE)  # characters without a meaning: they stand for control tokens in rendering
Shared = TypeVar("Shared", str, list[int])
OTHER_TEMPLATE = "use other rows, or a named template such as data.template=tulu"
TAKES_PICTURES = "use a model such as llava-hf/llava-1.5-7b-hf, or rows without pictures"


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids, and for each whether its prediction is trained: the assistant's turns and the token that ends them."""

    ids: list[int]
    trained: list[bool]


@dataclass(frozen=True, slots=True)
class Turns:
    """How messages become text: the tokenizer's own template, or the named one `jinja`; and the model's pictures.

    `pictures` is None if the model takes text only. With `lists` the template is given the parts of a message, as the
    templates of models with pictures read them. Without, the pictures of a turn are in front of its text, each on a
    line of its own, as LLaVA is trained.
    """

    tokenizer: PreTrainedTokenizerBase
    jinja: str | None = None
    pictures: Pictures | None = None
    lists: bool = False

    def render(self, messages: Sequence[Message]) -> str:
        """Return the prompt: the messages, up to where the assistant's next answer starts."""
        return self._render(messages, prompt=True)

    def tokenize(self, messages: Sequence[Message]) -> list[int]:
        """Return the prompt as tokens; a control token's text inside a message is tokenized as ordinary text."""
        messages, texts = self._neutralize(messages)
        return self._tokenize(self._render(messages, prompt=True), texts, messages)

    def encode(self, messages: Sequence[Message]) -> Encoded:
        """Return the messages as tokens, and which of them are trained.

        The whole conversation must begin with the prompt of each answer, in text and in tokens. The answer ends where
        the whole conversation and the one that ends on it stop being alike, or before: after its control token.

        Raises:
            MiloraError: the template refuses the messages or leaves out a part of one, or what is trained cannot be
                told from what is not.
        """
        messages, texts = self._neutralize(messages)
        whole = self._render(messages)
        _check_order(messages, whole)
        ids = self._tokenize(whole, texts, messages)
        trained = [False] * len(ids)
        for index, entry in enumerate(messages):
            if entry.role != "assistant":
                continue
            before = self._render(messages[:index], prompt=True)
            through = whole if entry is messages[-1] else self._render(messages[: index + 1])
            if not whole.startswith(before):
                raise MiloraError(
                    "the model's chat template rewrites earlier turns of a conversation, or begins an answer otherwise "
                    "in a prompt (with a thought, say), so that a prompt is not what was trained",
                    OTHER_TEMPLATE,
                )
            _check_order([entry], _common(whole, through)[len(before) :])
            start = self._tokenize(before, texts, messages[:index])
            if ids[: len(start)] != start:
                raise MiloraError(
                    f"the tokenizer joins {before[-10:]!r} at the end of a prompt with the answer that follows",
                    OTHER_TEMPLATE,
                )
            alike = ids if through == whole else _common(ids, self._tokenize(through, texts, messages[: index + 1]))
            end = _end_of_turn(self.tokenizer, ids, len(start), len(alike))
            trained[len(start) : end] = [True] * (end - len(start))
        return Encoded(ids, trained)

    def _render(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        dicts: list[Any] = [{"role": message.role, "content": self._content(message)} for message in messages]
        try:
            rendered = str(
                self.tokenizer.apply_chat_template(
                    dicts, chat_template=self.jinja, tokenize=False, add_generation_prompt=prompt
                )
            )
        except TemplateError as error:  # templates refuse some orders of roles, and some refuse system messages
            roles = ", ".join(message.role for message in messages)
            raise MiloraError(
                f"the model's chat template refuses a conversation of {roles}: {error}", OTHER_TEMPLATE
            ) from error
        return rendered

    def _content(self, message: Message) -> str | list[dict[str, str]]:
        if message.images and self.pictures is None:
            raise MiloraError("a message contains a picture, and the model takes text only", TAKES_PICTURES)
        if self.lists:
            return [
                {"type": "text", "text": part.text} if isinstance(part, Text) else {"type": "image"}
                for part in message.parts
            ]
        marks = f"{self.pictures.placeholder}\n" * len(message.images) if message.images and self.pictures else ""
        return marks + message.words

    def _neutralize(self, messages: Sequence[Message]) -> tuple[Sequence[Message], dict[str, str]]:
        """Put a character of private use in the place of each control token's text inside a message.

        Returns the messages, and what each character stands for; it is empty if no message has such a text.
        """
        control = _control_texts(self.tokenizer)
        if self.pictures and _images(messages):
            control = sorted({*control, self.pictures.placeholder}, key=_longest_first)
        used = "".join(message.words for message in messages)
        if not any(text in used for text in control):
            return messages, {}
        free = (chr(code) for code in PRIVATE_USE if chr(code) not in used)
        places = dict(zip(control, free, strict=False))
        for text, place in places.items():
            messages = [_replace(message, text, place) for message in messages]
        return messages, {place: text for text, place in places.items()}

    def _tokenize(self, rendered: str, texts: dict[str, str], messages: Sequence[Message]) -> list[int]:
        """Return the tokens of rendered messages, whose control tokens' texts `texts` stands for."""
        images = _images(messages)
        if images and self.pictures:
            first, *rest = rendered.split(self.pictures.placeholder)
            if len(rest) != len(images):
                raise MiloraError(
                    f"the chat template puts {len(rest)} of the {len(images)} pictures of a conversation into the text",
                    "set data.template=vicuna, which puts in each",
                )
            rendered = "".join([first, *(map("".join, zip(map(self.pictures.expand, images), rest, strict=True)))])
        if not texts:
            ids: list[int] = self.tokenizer(rendered, add_special_tokens=False)["input_ids"]
            return ids
        ids = []
        for piece in re.split(f"([{''.join(texts)}])", rendered):
            options = {"split_special_tokens": True} if piece in texts else {}
            ids += self.tokenizer(texts.get(piece, piece), add_special_tokens=False, **options)["input_ids"]
        return ids


@lru_cache(maxsize=4)
def find_training_template(tokenizer: PreTrainedTokenizerBase, _: str) -> str | None:
    """Return TRL's form of the tokenizer's chat template, which keeps earlier turns as they are, or None."""
    from trl.chat_template_utils import get_training_chat_template  # slow to import, and few templates need it

    try:
        return get_training_chat_template(tokenizer)
    except ValueError:
        return None


@lru_cache(maxsize=4)
def reads_parts(tokenizer: PreTrainedTokenizerBase, jinja: str | None, _: str) -> bool:
    """Return whether a chat template reads the parts of a message: one that reads text alone may write the list out."""
    messages: list[Any] = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    try:
        rendered = str(tokenizer.apply_chat_template(messages, chat_template=jinja, tokenize=False))
    except (TemplateError, TypeError):
        return False
    return "Hello" in rendered and not any(f"{quote}type{quote}" in rendered for quote in "'\"")


def _common(first: Shared, second: Shared) -> Shared:
    """What both begin with."""
    if first[: len(second)] == second:
        return second
    length = next((place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
    return first[: min(len(first), len(second)) if length is None else length]


def _control_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts of the tokenizer's control tokens, longest first, so that none hides a longer one."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return sorted({*tokenizer.all_special_tokens, *added}, key=_longest_first)


def _longest_first(text: str) -> tuple[int, str]:
    return -len(text), text


def _images(messages: Sequence[Message]) -> list[str]:
    return [path for message in messages for path in message.images]


def _replace(message: Message, text: str, place: str) -> Message:
    parts = [Text(part.text.replace(text, place)) if isinstance(part, Text) else part for part in message.parts]
    return Message(message.role, tuple(parts))


def _check_order(messages: Sequence[Message], rendered: str) -> None:
    """Raise unless the messages are in the text, one after the other. Templates may change white space."""
    text, place = "".join(rendered.split()), 0
    for message in messages:
        for part in message.parts:
            wanted = "".join(part.text.split()) if isinstance(part, Text) else ""
            place = text.find(wanted, place)
            if place < 0:
                raise MiloraError(
                    f"the model's chat template leaves out or rewrites a part of a message of the {message.role}: "
                    f"{message.words[:60]!r}",
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
