"""The record says which template was chosen for the rows of a recipe, and how many rows were left out."""

import json

import pytest

from milora import MiloraError
from milora.models.base import load_tokenizer
from milora.models.embedded import EMBEDDED
from milora.run.recipe import load_recipe
from milora.training.prepare import _tokenize


def say(text):
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "Hello!"}]}


@pytest.fixture
def tokenize(tmp_path):
    rows = [say("Hi!"), {"messages": None}, say("Hey!"), say("Ho!")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = load_tokenizer(load_recipe("quickstart").model)

    def tokenize(*overrides):
        own = [f"data.name={tmp_path / 'rows.jsonl'}", "data.validation_rows=1", "data.on_bad_row=drop"]
        return _tokenize(load_recipe("chat-smoke", [f"model.name={EMBEDDED}", *own, *overrides]), tokenizer)

    tokenize.tokenizer = tokenizer
    return tokenize


def test_the_chosen_template_and_the_bad_rows_are_recorded(tokenize):
    rows = tokenize("data.template=auto")
    assert (rows.template, rows.report.rows, rows.report.bad, len(rows.held_out)) == ("chat", 2, 1, 1)
    tokenize.tokenizer.chat_template = None
    assert tokenize("data.template=auto").template == "plain"


def test_rows_without_room_are_told_apart_from_held_out_ones(tokenize):
    with pytest.raises(MiloraError, match=r"all 2 rows are dropped: no answer begins within training\.max_length=4"):
        tokenize("training.max_length=4")
