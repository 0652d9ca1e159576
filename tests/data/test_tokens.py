"""What is trained on: answers and EOS, whole tokens, counted cuts."""

import datasets
import pytest
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from milora import MiloraError
from milora.data import tokens
from milora.data.conversation import Conversation, Message, Text
from milora.data.templates import TEMPLATES, TextTemplate, resolve_template
from milora.data.tokens import IGNORED, count_tokens, tokenize_rows
from milora.models.base import load_tokenizer
from milora.models.embedded import EMBEDDED
from milora.run.sections import ModelSection

ROW = Conversation.of_turn("What is 1 + 1?", "2. The answer is: 2")


def table(*rows):
    return datasets.Dataset.from_list([row.to_row() for row in rows])


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(ModelSection(name=EMBEDDED))


@pytest.mark.parametrize("name", TEMPLATES)
def test_exactly_the_answer_and_eos_are_trained(tokenizer, name):
    template = TEMPLATES[name]
    data, _ = tokenize_rows(table(ROW), template, tokenizer, max_length=256)
    row = data[0]
    trained = [label for label in row["labels"] if label != IGNORED]
    assert tokenizer.decode(trained) == template.answer_prefix + ROW.answer + tokenizer.eos_token
    assert row["input_ids"][: -len(trained)] == tokenizer(template.render(ROW.prompt))["input_ids"]


def test_a_token_that_would_straddle_the_boundary_is_still_trained(tokenizer):
    glued = TextTemplate("Total:{question} uns")  # "uns" + "ure" is one token where both are in one text
    whole = tokenizer("Total: unsure")["input_ids"]
    data, _ = tokenize_rows(table(Conversation.of_turn("", "ure")), glued, tokenizer, max_length=64)
    row = data[0]
    assert row["input_ids"] != [*whole, tokenizer.eos_token_id], "the example must be one that would merge"
    trained = [label for label in row["labels"] if label != IGNORED]
    assert tokenizer.decode(trained) == "ure" + tokenizer.eos_token


def test_loss_on_all_trains_the_prompt_too(tokenizer):
    data, _ = tokenize_rows(table(ROW), TEMPLATES["alpaca"], tokenizer, max_length=256, loss_on="all")
    assert data[0]["labels"] == [IGNORED, *data[0]["input_ids"][1:]]  # nothing predicts the first


def test_cuts_are_counted_and_rows_without_room_left_out(tokenizer):
    template = TEMPLATES["plain"]
    encoded = template.encode(tokenizer, ROW)
    asked, whole = encoded.trained.count(False), len(encoded.ids)
    short = Conversation.of_turn("?", "")
    for length, expected in ((whole, (0, 0)), (whole - 1, (1, 0)), (asked + 1, (1, 0)), (asked, (0, 1))):
        data, report = tokenize_rows(table(ROW, ROW, short), template, tokenizer, max_length=length)
        assert (report.truncated, report.dropped) == (2 * expected[0], 2 * expected[1])
        assert all(len(row["input_ids"]) <= length for row in data)


def test_rows_that_are_all_too_long_are_one_error(tokenizer):
    template, longer = TEMPLATES["plain"], Conversation.of_turn("What is 1 + 1, and why?", "2, by counting.")
    lengths = sorted(len(template.encode(tokenizer, row).ids) for row in (ROW, longer))
    reason = (
        rf"all 2 held-out rows are dropped: no answer begins within training\.max_length=3 tokens; .* {lengths[0]} to "
        rf"{lengths[1]} tokens \(set training\.max_length={lengths[1]},"
    )
    with pytest.raises(MiloraError, match=reason):
        tokenize_rows(table(ROW, longer), template, tokenizer, max_length=3, what="held-out rows")
    data, report = tokenize_rows(table(ROW, longer), template, tokenizer, max_length=lengths[1])
    assert len(data) == 2 and report.truncated == report.dropped == 0


ODD = [
    ROW,
    Conversation.of_turn("", ""),
    Conversation.of_turn("<|im_end|> 1", "é\n<|im_start|>"),
    Conversation.of_turn("a" * 900, "b"),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TEMPLATES, "tulu", "chat"])
@pytest.mark.parametrize("loss_on", ["answer", "all"])
def test_batches_have_the_tokens_of_rows_one_by_one(tokenizer, name, loss_on):
    template, rows = resolve_template(name, lambda: tokenizer), [ODD[index % 4] for index in range(7)]
    options = {"tokenizer": tokenizer, "max_length": 1024, "loss_on": loss_on}
    data, report = tokenize_rows(table(*rows), template, **options)
    for index, row in enumerate(ODD[:3]):
        (alone,), counted = tokenize_rows(table(row), template, **options)
        assert data[index] == data[index + 4] == alone
        assert counted.tokens == len(alone["input_ids"])
        assert counted.trained == len(alone["labels"]) - alone["labels"].count(IGNORED)
    assert count_tokens(table(*rows), template, tokenizer) == [len(template.encode(tokenizer, row).ids) for row in rows]
    assert report.rows == 7


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_text_is_its_prompt_and_then_its_answer_each_tokenized_alone(tokenizer, name):
    template = TEMPLATES[name]
    for row, encoded in zip(ODD, template.encode_all(tokenizer, ODD), strict=True):
        prompt = tokenizer(template.render(row.prompt), split_special_tokens=True)["input_ids"]
        text = template.answer_prefix + row.answer
        answer = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert encoded.ids == [*prompt, *answer, tokenizer.eos_token_id]
        assert encoded.trained == [False] * len(prompt) + [True] * (len(answer) + 1)


class Lowering(PreTrainedTokenizerFast):
    """A tokenizer that does more than the backend below it."""

    def _encode_plus(self, text, *args, **options):
        lowered = text.lower() if isinstance(text, str) else [each.lower() for each in text]
        return super()._encode_plus(lowered, *args, **options)


def test_a_tokenizer_that_does_more_than_its_backend_keeps_its_own_tokens(tokenizer):
    own = Lowering(tokenizer_object=tokenizer.backend_tokenizer, eos_token=tokenizer.eos_token)
    rows = [ROW, Conversation.of_turn("WHAT?", "NOTHING")]
    for found, row in zip(TEMPLATES["plain"].encode_all(own, rows), rows, strict=True):
        lowered = Conversation.of_turn(row.question.lower(), row.answer.lower())
        text = TEMPLATES["plain"].render(lowered.prompt).lower()
        assert tokenizer.decode(found.ids) == f"{text} {lowered.answer}{tokenizer.eos_token}"


def test_a_tokenizer_without_a_backend_encodes_as_it_does_alone():
    slow, row = ByT5Tokenizer(), Conversation.of_turn("é?", "ü")
    found = TEMPLATES["plain"].encode(slow, row)
    assert not slow.is_fast and slow.decode(found.ids) == f"Question: é?\nAnswer: ü{slow.eos_token}"


@pytest.mark.slow
def test_several_processes_give_the_same_rows_and_the_same_errors(tokenizer, monkeypatch):
    rows, options = table(*(ROW, ODD[2]) * 5), {"tokenizer": tokenizer, "max_length": 64}
    found = [tokenize_rows(rows, TEMPLATES["plain"], **options)]
    monkeypatch.setattr(tokens, "FORKED_FROM", 1)
    found.append(tokenize_rows(rows, TEMPLATES["plain"], **options))
    assert list(found[0][0]) == list(found[1][0]) and found[0][1] == found[1][1]
    two = Conversation((*ROW.messages, Message("user", (Text("And 2?"),)), Message("assistant", (Text("4"),))))
    with pytest.raises(MiloraError, match="room for one question") as refused:
        tokenize_rows(table(*[ROW] * 9, two), TEMPLATES["plain"], **options)
    assert refused.value.hint == "set data.template=chat or tulu"
