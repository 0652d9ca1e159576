"""Templates: a conversation → token ids, and a mask of what is trained. Scoring and chatting use the same ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from milora.data.conversation import Conversation, Message
from milora.data.processor import Pictures
from milora.data.turns import Encoded, Turns, find_training_template, reads_parts
from milora.method.errors import MiloraError
from milora.method.options import TemplateName


class Template(Protocol):
    """How conversations become text."""

    @property
    def text(self) -> str:
        """What the template is: a text with `{question}` in it, Jinja, or "chat" for the model's own."""

    @property
    def pictures(self) -> Pictures | None:
        """What pictures become; None: the template writes text only."""

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

    def encode_all(self, tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation]) -> list[Encoded]:
        """Return what `encode` does of each conversation."""


@dataclass(frozen=True, slots=True)
class TextTemplate:
    """A text with `{question}` in it, after which the answer follows, and then the end-of-text token."""

    text: str
    answer_prefix: str = ""  # between the prompt's last character and the answer

    @property
    def pictures(self) -> None:
        return None

    @property
    def stops(self) -> tuple[str, ...]:
        return ()

    def render(self, messages: Sequence[Message]) -> str:
        roles = [message.role for message in messages]
        if any(message.images for message in messages):
            raise MiloraError(
                "a message contains a picture, and this template writes text only", "set data.template=vicuna or chat"
            )
        if not roles:
            return ""  # a row of plain text, which is trained whole
        if roles != ["user"]:
            raise MiloraError(
                f"this template has room for one question and its answer, and a row has {', '.join(roles)} before its "
                "last answer",
                "set data.template=chat or tulu",
            )
        return self.text.replace("{question}", messages[0].text)

    def encode_prompt(self, tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
        return _encode_prompts(tokenizer, [self.render(messages)])[0]

    def encode(self, tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> Encoded:
        """Prompt, answer and EOS; the answer is tokenized apart from the prompt.

        So no token straddles the boundary: every answer token is trained, and the prompt's tokens are those of
        evaluation. Plain text has no prompt but a tokenizer's BOS.
        """
        return self.encode_all(tokenizer, [conversation])[0]

    def encode_all(self, tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation]) -> list[Encoded]:
        prompts = _encode_prompts(tokenizer, [self.render(row.prompt) for row in conversations])
        texts = [self.answer_prefix + row.answer if row.prompt else row.answer for row in conversations]
        answers = _encode(tokenizer, texts, add_special_tokens=False)
        end = tokenizer.eos_token_id  # not for each row: every access looks the token up
        return [
            Encoded([*prompt, *answer, end], [False] * len(prompt) + [True] * (len(answer) + 1))
            for prompt, answer in zip(prompts, answers, strict=True)
        ]


def _encode_prompts(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    prompts, end = _encode(tokenizer, texts, add_special_tokens=True), tokenizer.eos_token_id
    return [prompt[:-1] if prompt and prompt[-1] == end else prompt for prompt in prompts]


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], *, add_special_tokens: bool) -> list[list[int]]:
    """The texts as tokens; they have no control tokens of their own: one in a row is ordinary text."""
    options = {"add_special_tokens": add_special_tokens, "split_special_tokens": True}
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        # Without the tokens' places in the text its backend takes three quarters of the time. The first text sets the
        # backend up, and shows whether the tokenizer does something of its own.
        first: list[int] = tokenizer(texts[0], **options)["input_ids"]
        found = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
        if found[0].ids == first:
            return [each.ids for each in found]
    encoded: list[list[int]] = tokenizer(texts, **options)["input_ids"]
    return encoded


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A chat template in Jinja: the one that a tokenizer carries, or `jinja`, the text of a named one.

    `pictures` are those of a model that takes some. The mask comes from prefixes, see `Turns.encode`. If it cannot be
    told from the tokenizer's own template, TRL's training form of that is tried. TRL's own mask is not used: it also
    trains white space around a turn.
    """

    tokenizer: PreTrainedTokenizerBase
    jinja: str | None = None
    pictures: Pictures | None = None

    @property
    def text(self) -> str:
        return self.jinja or CHAT

    @property
    def end_of_turn(self) -> int:
        """The token that ends an answer."""
        encoded = self.encode(self.tokenizer, Conversation.of_turn("Hello", "Hello"))
        return next(token for token, keep in zip(encoded.ids[::-1], encoded.trained[::-1], strict=True) if keep)

    @property
    def stops(self) -> tuple[str, ...]:
        # A named template ends answers with EOS.
        return () if self.jinja else (str(self.tokenizer.decode([self.end_of_turn])),)

    def render(self, messages: Sequence[Message]) -> str:
        return self._turns(self.tokenizer, self.jinja).render(messages)

    def encode_prompt(self, tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
        return self._begin(tokenizer) + self._turns(tokenizer, self.jinja).tokenize(messages)

    def encode(self, tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> Encoded:
        messages = conversation.messages
        if len(messages) == 1:
            raise MiloraError(
                "a row is plain text, and a chat template needs a question and an answer",
                "set data.template=plain, which trains the text whole",
            )
        try:
            encoded = self._turns(tokenizer, self.jinja).encode(messages)
        except MiloraError as error:
            training = None if self.jinja else find_training_template(tokenizer, str(tokenizer.chat_template))
            if training is None:
                raise
            try:
                encoded = self._turns(tokenizer, training).encode(messages)
            except MiloraError:
                raise error from None
        begin = self._begin(tokenizer)
        return Encoded(begin + encoded.ids, [False] * len(begin) + encoded.trained)

    def encode_all(self, tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation]) -> list[Encoded]:
        return [self.encode(tokenizer, conversation) for conversation in conversations]

    def _turns(self, tokenizer: PreTrainedTokenizerBase, jinja: str | None) -> Turns:
        is_own = self.pictures is not None and self.jinja is None
        lists = is_own and reads_parts(tokenizer, jinja, str(tokenizer.chat_template))
        return Turns(tokenizer, jinja, self.pictures, lists)

    def _begin(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The BOS that a tokenizer puts before a text: a tokenizer's own template writes it, a named one does not."""
        begin: list[int] = tokenizer("")["input_ids"] if self.jinja else []
        return begin[:-1] if begin and begin[-1] == tokenizer.eos_token_id else begin


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
    # PEFT's method comparison on MetaMathQA; its answers, too, follow at once.
    "peft": TextTemplate("Question: {question} Think step by step.\nAnswer:"),
}
# Named chat templates. White space around a message is removed, answers end with EOS.
TURNS = {
    # open-instruct's of 2024; it also trains the newline between two turns.
    "tulu": (
        "{% for message in messages %}"
        "{% if loop.previtem is defined and loop.previtem.role == 'assistant' %}{{ '\\n' }}{% endif %}"
        "{{ '<|' + message.role + '|>\\n' + message.content.strip() }}"
        "{{ eos_token if message.role == 'assistant' else '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}"
        "{{ ('\\n' if messages[-1].role == 'assistant' else '') + '<|assistant|>\\n' }}{% endif %}"
    ),
    # Vicuna's first version, which LLaVA trains with.
    "vicuna": (
        "{% if messages[0].role != 'system' %}A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions. {% endif %}"
        "{% for message in messages %}"
        "{% if message.role == 'assistant' %}{{ 'ASSISTANT: ' + message.content.strip() + eos_token }}"
        "{% else %}{{ ('USER: ' if message.role == 'user' else '') + message.content.strip() + ' ' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    ),
}


def choose_template(name: TemplateName, load_tokenizer: Callable[[], PreTrainedTokenizerBase]) -> TemplateName:
    """Return what `auto` stands for: `chat` if the tokenizer has a chat template, otherwise `plain`."""
    if name != "auto":
        return name
    return CHAT if load_tokenizer().chat_template else "plain"


def resolve_template(
    name: TemplateName, load_tokenizer: Callable[[], PreTrainedTokenizerBase], pictures: Pictures | None = None
) -> Template:
    """Return the template of this name; `chat` is that of the tokenizer, which is loaded unless it is a plain text.

    `pictures` are those of a model that takes some.

    Raises:
        MiloraError: the tokenizer has no chat template.
    """
    name = choose_template(name, load_tokenizer)
    if name in TEMPLATES:
        return TEMPLATES[name]
    tokenizer = load_tokenizer()
    if name == CHAT and not tokenizer.chat_template:
        raise MiloraError(
            f"data.template=chat: the tokenizer of {tokenizer.name_or_path} has no chat template",
            f"choose one of {', '.join([*TEMPLATES, *TURNS])}",
        )
    return ChatTemplate(tokenizer, TURNS.get(name), pictures)


def describe_template(name: TemplateName) -> str:
    """Return the `text` of a template without loading a tokenizer."""
    return TEMPLATES[name].text if name in TEMPLATES else TURNS.get(name, CHAT)
