"""What is trained on: answers and EOS, whole tokens, counted cuts."""

import datasets
import pytest

from milora import MiloraError
from milora.data.conversation import Conversation
from milora.data.templates import TEMPLATES, TextTemplate
from milora.data.tokens import IGNORED, tokenize_rows
from milora.models.base import load_tokenizer
from milora.models.embedded import EMBEDDED
from milora.run.recipe import ModelSection

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
    assert data[0]["labels"] == data[0]["input_ids"]


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
