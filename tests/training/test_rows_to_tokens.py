"""The record says which template was chosen for the rows of a recipe, and how many rows were left out."""

import json
import re
from dataclasses import replace

import pytest

from milora import MiloraError
from milora.data.tokens import tokenize_rows
from milora.models.base import load_tokenizer
from milora.models.embedded import EMBEDDED
from milora.run.recipe import load_recipe
from milora.training import rows as training_rows
from milora.training.announcement import announce
from milora.training.prepare import Preparation
from milora.training.rows import prepare_rows


def say(text):
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "Hello!"}]}


@pytest.fixture
def tokenize(tmp_path):
    rows = [say("Hi!"), {"messages": None}, say("Hey!"), say("Ho!")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = load_tokenizer(load_recipe("quickstart").model)

    def tokenize(*overrides):
        own = [f"data.name={tmp_path / 'rows.jsonl'}", "data.validation_rows=1", "data.on_bad_row=drop"]
        return prepare_rows(load_recipe("chat-smoke", [f"model.name={EMBEDDED}", *own, *overrides]), tokenizer)

    tokenize.tokenizer = tokenizer
    return tokenize


def test_the_chosen_template_and_the_bad_rows_are_recorded(tokenize):
    rows = tokenize("data.template=auto")
    assert (rows.template, rows.report.rows, rows.report.bad, len(rows.held_out)) == ("chat", 2, 1, 1)
    tokenize.tokenizer.chat_template = None
    assert tokenize("data.template=auto").template == "plain"


def test_what_is_lost_is_announced(tokenize):
    rows = tokenize("training.max_length=40")
    recipe = load_recipe("chat-smoke", ["training.batch_size=1", "training.max_steps=null"])
    said = announce(recipe, Preparation(None, 0, 0, tokenize.tokenizer, rows, "documents", None)).splitlines()
    assert re.fullmatch(
        r"training on 2 \(1 dropped as bad\) rows, 1 held out; (\d+) tokens, (\d+)% of them trained; "
        "2 steps of 1 rows; template chat; rows packed, attention row by row",
        said[0],
    )
    assert said[1].startswith("first row: '<|im_start|>system") and said[1].endswith("⟦Hello!<|im_end|>⟧\\n'")
    report = replace(rows.report, truncated=1, dropped=2, copies=3)
    rows = replace(rows, report=report, held_out_report=replace(rows.held_out_report, dropped=4, truncated=1))
    said = announce(recipe, Preparation(None, 0, 0, tokenize.tokenizer, rows, "documents", None)).splitlines()
    assert said[0].startswith(
        "training on 2 (1 cut, 2 dropped for their length, 1 dropped as bad, 3 left out as copies of held-out rows) "
        "rows, 1 (1 cut, 4 dropped for their length) held out; "
    )


def test_rows_with_too_many_tokens_are_left_out_before_others_are_taken(tokenize, tmp_path):
    rows = [say("Hi!"), say("Hi, " * 30), say("Hey!"), say("Ho!")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    longest = max(len(row) for row in tokenize("data.validation_rows=0", "data.max_tokens=60").train["input_ids"])
    exactly = [f"data.max_tokens={longest}", "training.max_length=60"]
    found = tokenize("data.validation_rows=1", "data.rows=2", *exactly)
    assert (found.report.rows, found.report.long, found.report.truncated, len(found.held_out)) == (2, 1, 0, 1)
    assert len(tokenize("data.validation_rows=0", *exactly).train) == 3
    recipe = load_recipe("chat-smoke", ["training.batch_size=1", "training.max_steps=null"])
    said = announce(recipe, Preparation(None, 0, 0, tokenize.tokenizer, found, "padded", None))
    assert said.startswith("training on 2 (1 left out as longer than data.max_tokens) rows, 1 held out; ")
    with pytest.raises(MiloraError, match=r"has no rows; 4 have more than data\.max_tokens=5 tokens"):
        tokenize("data.max_tokens=5")


def test_held_out_rows_without_room(tokenize, monkeypatch):
    lengths = {}

    def cut(rows, *, what="rows", max_length, **options):
        lengths[what] = len(rows)
        return tokenize_rows(rows, what=what, max_length=4 if what == "held-out rows" else max_length, **options)

    monkeypatch.setattr(training_rows, "tokenize_rows", cut)
    with pytest.raises(
        MiloraError, match=r"all 1 held-out rows are dropped: .* the rows have 3\d to 3\d tokens"
    ) as error:
        tokenize("training.max_length=40")
    assert error.value.hint.startswith("set training.max_length=3")


def test_rows_without_room_are_told_apart_from_held_out_ones(tokenize):
    with pytest.raises(MiloraError, match=r"all 2 rows are dropped: no answer begins within training\.max_length=4"):
        tokenize("training.max_length=4")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "template"), [("instruct-smoke", "tulu"), ("instruct-chat-smoke", "chat")])
def test_the_smoke_recipes_of_the_instruction_track(name, template, data_dir):
    recipe = load_recipe(name, [f"data.data_dir={data_dir}"])
    tokenizer = load_tokenizer(recipe.model)
    rows = prepare_rows(recipe, tokenizer)
    assert (rows.template, len(rows.train), len(rows.held_out)) == (template, 48, 16)
    # No answer is cut: each ends with the token that ends a turn.
    assert rows.report.truncated == 0 and 0 < rows.report.long < 350
    assert all(tokenizer.eos_token_id in row["labels"][-2:] for row in rows.train)
