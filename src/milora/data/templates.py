"""Templates: a conversation → token ids, and a mask of what is trained. Scoring and chatting use the same ones."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from milora.data.conversation import Conversation, Message
from milora.method.errors import MiloraError
from milora.method.options import TemplateName

PRIVATE_USE = range(0xF0000, 0xFFFFE)  # characters without a meaning: they stand for control tokens in rendering


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids, and for each whether its prediction is trained: the assistant's turns and the token that ends them."""

    ids: list[int]
    trained: list[bool]


class Template(Protocol):
    """How conversations become text."""

    @property
    def text(self) -> str:
        """What the template is: a text with `{question}` in it, or "chat" for the model's own."""

    @property
    def stops(self) -> tuple[str, ...]:
        """Strings that end an answer beside EOS."""

    def render(self, messages: Sequence[Message]) -> str:
        """Return the prompt: the messages, up to where the assistant's next answer starts."""

    def encode_prompt(self, tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
        """Return the prompt as tokens: those that `encode` has before the next answer."""

    def encode(self, tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> Encoded:
        """Return the whole conversation as tokens.

        Raises:
            MiloraError: the template cannot express the conversation.
        """


@dataclass(frozen=True, slots=True)
class TextTemplate:
    """A text with `{question}` in it, after which the answer follows, and then the end-of-text token."""

    text: str
    answer_prefix: str = ""  # between the prompt's last character and the answer

    @property
    def stops(self) -> tuple[str, ...]:
        return ()

    def render(self, messages: Sequence[Message]) -> str:
        roles = [message.role for message in messages]
        if not roles:
            return ""  # a row of plain text, which is trained whole
        if roles != ["user"]:
            raise MiloraError(
                f"this template has room for one question and its answer, and a row has {', '.join(roles)} before its "
                "last answer",
                "set data.template=chat",
            )
        return self.text.replace("{question}", messages[0].text)

    def encode_prompt(self, tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
        # The texts have no control tokens of their own: one in a row is ordinary text.
        prompt: list[int] = tokenizer(self.render(messages), split_special_tokens=True)["input_ids"]
        return prompt[:-1] if prompt and prompt[-1] == tokenizer.eos_token_id else prompt

    def encode(self, tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> Encoded:
        """Prompt, answer and EOS; the answer is tokenized apart from the prompt.

        So no token straddles the boundary: every answer token is trained, and the prompt's tokens are those of
        evaluation. Plain text has no prompt but a tokenizer's BOS.
        """
        prompt = self.encode_prompt(tokenizer, conversation.prompt)
        text = self.answer_prefix + conversation.answer if conversation.prompt else conversation.answer
        answer: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        answer = [*answer, tokenizer.eos_token_id]
        return Encoded(prompt + answer, [False] * len(prompt) + [True] * len(answer))


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """The chat template that a tokenizer carries.

    The mask comes from prefixes: the tokens up to an answer, and those up to the end of that answer, must each start
    the tokens of the whole conversation. If they do not, TRL's training form of the template is tried. Its own mask is
    not used: it also trains white space around a turn.
    """

    tokenizer: PreTrainedTokenizerBase

    @property
    def text(self) -> str:
        return CHAT

    @property
    def end_of_turn(self) -> int:
        """The token that ends an answer."""
        encoded = self.encode(self.tokenizer, Conversation.of_turn("Hello", "Hello"))
        return next(token for token, keep in zip(encoded.ids[::-1], encoded.trained[::-1], strict=True) if keep)

    @property
    def stops(self) -> tuple[str, ...]:
        return (str(self.tokenizer.decode([self.end_of_turn])),)

    def render(self, messages: Sequence[Message]) -> str:
        return str(_render(self.tokenizer, _as_dicts(messages), tokenize=False, add_generation_prompt=True))

    def encode_prompt(self, tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
        return _tokenize(tokenizer, messages, add_generation_prompt=True)

    def encode(self, tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> Encoded:
        messages = conversation.messages
        if len(messages) == 1:
            raise MiloraError(
                "a row is plain text, and the model's chat template needs a question and an answer",
                "set data.template=plain, which trains the text whole",
            )
        try:
            return _encode(tokenizer, messages)
        except MiloraError:
            training = _find_training_template(tokenizer, tokenizer.chat_template)
            if training is None:
                raise
            return _encode(tokenizer, messages, chat_template=training)


def _encode(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], **options: Any) -> Encoded:
    ids = _tokenize(tokenizer, messages, **options)
    trained = [False] * len(ids)
    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        before = _tokenize(tokenizer, messages[:index], add_generation_prompt=True, **options)
        through = _tokenize(tokenizer, messages[: index + 1], **options)
        for prefix in (before, through):
            if ids[: len(prefix)] != prefix:
                raise MiloraError(
                    "the model's chat template rewrites earlier turns of a conversation, or joins a prompt and its "
                    "answer in one token, so that what is trained cannot be told from what is not",
                    "use one turn per row, or a named template such as data.template=alpaca",
                )
        end = _end_of_turn(tokenizer, ids, len(before), len(through))
        trained[len(before) : end] = [True] * (end - len(before))
    return Encoded(ids, trained)


@lru_cache(maxsize=4)
def _find_training_template(tokenizer: PreTrainedTokenizerBase, _: str) -> str | None:
    """Return TRL's form of the tokenizer's chat template, which keeps earlier turns as they are, or None."""
    from trl.chat_template_utils import get_training_chat_template  # slow to import, and few templates need it

    try:
        return get_training_chat_template(tokenizer)
    except ValueError:
        return None


def _as_dicts(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.text} for message in messages]


def _render(tokenizer: PreTrainedTokenizerBase, dicts: list[dict[str, str]], **options: Any) -> Any:
    try:
        return tokenizer.apply_chat_template(dicts, **options)
    except TemplateError as error:  # templates refuse some orders of roles, and some refuse system messages
        roles = ", ".join(entry["role"] for entry in dicts)
        raise MiloraError(
            f"the model's chat template refuses a conversation of {roles}: {error}",
            "use other rows, or a named template such as data.template=alpaca",
        ) from error


def _tokenize(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], **options: Any) -> list[int]:
    """The template's tokens; a control token's text inside a message is tokenized as the ordinary text it is."""
    dicts = _as_dicts(messages)
    control = _control_texts(tokenizer)
    if not any(text in entry["content"] for entry in dicts for text in control):
        encoded = _render(tokenizer, dicts, tokenize=True, return_dict=True, **options)
        ids: list[int] = encoded["input_ids"]
        return ids
    used = "".join(entry["content"] for entry in dicts)
    free = (chr(code) for code in PRIVATE_USE if chr(code) not in used)
    places = dict(zip(control, free, strict=False))
    for entry in dicts:
        for text in control:
            entry["content"] = entry["content"].replace(text, places[text])
    texts = {place: text for text, place in places.items()}
    ids = []
    for piece in re.split(f"([{''.join(texts)}])", _render(tokenizer, dicts, tokenize=False, **options)):
        options_of_piece = {"split_special_tokens": True} if piece in texts else {}
        ids += tokenizer(texts.get(piece, piece), add_special_tokens=False, **options_of_piece)["input_ids"]
    return ids


def _control_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts of the tokenizer's control tokens, longest first, so that none hides a longer one."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return sorted({*tokenizer.all_special_tokens, *added}, key=lambda text: (-len(text), text))


def _end_of_turn(tokenizer: PreTrainedTokenizerBase, ids: list[int], start: int, end: int) -> int:
    """Return where an answer ends: after its last control token (`<|im_end|>`), not after white space behind it."""
    added = tokenizer.added_tokens_decoder
    special = {*tokenizer.all_special_ids, *(token for token, content in added.items() if content.special)}
    last = next((place for place in range(end - 1, start - 1, -1) if ids[place] in special), None)
    if last is None:
        raise MiloraError(
            "the model's chat template does not end an answer with a control token, so that the model would not learn "
            "to stop",
            "use a named template such as data.template=alpaca, which ends answers with EOS",
        )
    return last + 1


CHAT: Literal["chat"] = "chat"  # the name of the model's own template
TEMPLATES = {
    "plain": TextTemplate("Question: {question}\nAnswer:", " "),
    # LLM-Adapters and the paper's mathematics: no trailing space, the answer follows at once.
    "alpaca": TextTemplate(
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\n{question}\n\n### Response:"
    ),
    # LLM-Adapters' commonsense training prompt, with its two trailing spaces and its indent of 16.
    "commonsense": TextTemplate(
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.  "
        "\n\n                ### Instruction:\n                {question}\n                \n"
        "                ### Response:\n                "
    ),
}


def choose_template(name: TemplateName, load_tokenizer: Callable[[], PreTrainedTokenizerBase]) -> TemplateName:
    """Return what `auto` stands for: `chat` if the tokenizer has a chat template, otherwise `plain`."""
    if name != "auto":
        return name
    return CHAT if load_tokenizer().chat_template else "plain"


def resolve_template(name: TemplateName, load_tokenizer: Callable[[], PreTrainedTokenizerBase]) -> Template:
    """Return the template of this name; `chat` is that of the tokenizer, which is loaded for it and `auto` alone.

    Raises:
        MiloraError: the tokenizer has no chat template.
    """
    name = choose_template(name, load_tokenizer)
    if name != CHAT:
        return TEMPLATES[name]
    tokenizer = load_tokenizer()
    if not tokenizer.chat_template:
        raise MiloraError(
            f"data.template=chat: the tokenizer of {tokenizer.name_or_path} has no chat template",
            f"choose one of {', '.join(TEMPLATES)}",
        )
    return ChatTemplate(tokenizer)


def describe_template(name: TemplateName) -> str:
    """Return the `text` of a template without loading a tokenizer."""
    return CHAT if name == CHAT else TEMPLATES[name].text
