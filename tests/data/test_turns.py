"""Named chat templates: the exact bytes, the ids that open-instruct trains, and what is trained of them."""

import pytest
from tokenizers.processors import TemplateProcessing

from milora.data.conversation import Conversation, Message, Text
from milora.data.templates import resolve_template
from milora.models.base import load_tokenizer
from milora.models.embedded import EMBEDDED
from milora.run.sections import ModelSection

TURNS = [
    ("user", " What is 1 + 1?\n"),
    ("assistant", "Two. "),
    ("user", "And 2 + 2?"),
    ("assistant", "Four,\n\nas ever."),
]
SYSTEM = ("system", "Be brief.")
TULU = (
    "<|user|>\nWhat is 1 + 1?\n<|assistant|>\nTwo.<|im_end|>\n"
    "<|user|>\nAnd 2 + 2?\n<|assistant|>\nFour,\n\nas ever.<|im_end|>"
)
VICUNA = "USER: What is 1 + 1? ASSISTANT: Two.<|im_end|>USER: And 2 + 2? ASSISTANT: Four,\n\nas ever.<|im_end|>"
CHATTING = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
TEXTS = [
    ("tulu", TURNS, TULU),
    ("tulu", [SYSTEM, *TURNS], "<|system|>\nBe brief.\n" + TULU),
    ("tulu", TURNS[:2], TULU.partition("\n<|user|>\nAnd")[0]),
    ("vicuna", TURNS, CHATTING + VICUNA),
    ("vicuna", [SYSTEM, *TURNS], "Be brief. " + VICUNA),
    ("vicuna", TURNS[:2], CHATTING + VICUNA.partition("USER: And")[0]),
]


def converse(turns):
    return Conversation(tuple(Message(role, (Text(text),)) for role, text in turns))


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(ModelSection(name=EMBEDDED))


@pytest.mark.parametrize(("name", "turns", "text"), TEXTS)
def test_text_ids_and_what_is_trained(tokenizer, name, turns, text):
    template, conversation = resolve_template(name, lambda: tokenizer), converse(turns)
    encoded = template.encode(tokenizer, conversation)
    assert encoded.ids == tokenizer(text)["input_ids"]
    trained = tokenizer.decode([token for token, keep in zip(encoded.ids, encoded.trained, strict=True) if keep])
    space = " " if name == "vicuna" else ""
    assert trained == "".join(f"{space}{text.strip()}<|im_end|>" for role, text in turns if role == "assistant")
    # The prompt is what stands before the last answer, in text and in tokens.
    answer = f"{space}{conversation.answer.strip()}<|im_end|>"
    assert template.render(conversation.prompt) == text.removesuffix(answer)
    prompt = template.encode_prompt(tokenizer, conversation.prompt)
    assert prompt == encoded.ids[: len(prompt)] and len(prompt) + len(tokenizer(answer)["input_ids"]) == len(
        encoded.ids
    )
    assert template.stops == ()


def test_two_answers_in_a_row_are_two_turns(tokenizer):
    template = resolve_template("tulu", lambda: tokenizer)
    encoded = template.encode(tokenizer, converse([TURNS[0], TURNS[1], TURNS[3]]))
    expected = "<|user|>\nWhat is 1 + 1?\n<|assistant|>\nTwo.<|im_end|>\n<|assistant|>\nFour,\n\nas ever.<|im_end|>"
    assert tokenizer.decode(encoded.ids) == expected


@pytest.mark.parametrize("name", ["tulu", "vicuna"])
def test_a_bos_is_the_tokenizers(name):
    tokenizer = load_tokenizer(ModelSection(name=EMBEDDED))
    plain = resolve_template(name, lambda: tokenizer).encode(tokenizer, converse(TURNS))
    begin = ("<|endoftext|>", tokenizer.convert_tokens_to_ids("<|endoftext|>"))
    for form in ("<|endoftext|> $A", "<|endoftext|> $A <|im_end|>"):  # as Llama's tokenizer, and one that adds EOS too
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=form, special_tokens=[begin, ("<|im_end|>", tokenizer.eos_token_id)]
        )
        template = resolve_template(name, lambda: tokenizer)
        encoded = template.encode(tokenizer, converse(TURNS))
        assert (encoded.ids, encoded.trained) == ([begin[1], *plain.ids], [False, *plain.trained])
        assert template.encode_prompt(tokenizer, converse(TURNS).prompt)[0] == begin[1]
