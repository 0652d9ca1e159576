"""Rows are prepared once: runs with the same rows, template and tokenizer read what the first one wrote."""

import gc
import json
import shutil

import pytest

from milora import MiloraError
from milora.data import cache as kept
from milora.models.base import load_tokenizer
from milora.run.recipe import load_recipe
from milora.training import rows as training_rows
from milora.training.rows import prepare_rows

LENGTH = "training.max_length=64"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(load_recipe("quickstart").model)


@pytest.fixture
def prepare(tmp_path, tokenizer, monkeypatch):
    """Prepare rows of a file; whether they were tokenized, and the rows."""
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"question": "{n}?", "answer": "{n}"}}\n' for n in range(9)))
    tokenized = []
    tokenize = training_rows.tokenize_rows
    monkeypatch.setattr(
        training_rows, "tokenize_rows", lambda *args, **options: tokenized.append(1) or tokenize(*args, **options)
    )

    def prepare(*overrides, file="rows.jsonl", tokenizer=tokenizer, cache=tmp_path / "cache"):
        own = [f"data.name={tmp_path / file}", "data.validation_rows=2", LENGTH]
        found = prepare_rows(load_recipe("quickstart", [*own, *overrides]), tokenizer, cache)
        was_tokenized = bool(tokenized)
        tokenized.clear()
        return was_tokenized, found

    return prepare


def content(rows):
    return list(rows.train), list(rows.held_out), rows.template, rows.report, rows.held_out_report


def test_the_second_time_they_are_read(prepare, tmp_path):
    (first, found), (second, again) = prepare(), prepare("training.learning_rate=1", "seed=3", "name=other")
    assert first and not second and content(found) == content(again)
    shutil.copy(tmp_path / "rows.jsonl", tmp_path / "elsewhere.jsonl")
    assert not prepare(file="elsewhere.jsonl")[0], "the content counts, not its path"


def test_garbage_collection_is_as_before(prepare):
    prepare()
    with pytest.raises(MiloraError):
        prepare("data.validation_rows=9")
    assert gc.isenabled() and gc.get_freeze_count() == 0


@pytest.mark.parametrize(
    "override",
    ["data.template=alpaca", "training.max_length=63", "training.loss_on=all", "data.seed=1", "data.validation_rows=3"],
)
def test_what_decides_the_tokens_makes_others(prepare, override):
    prepare()
    changed, found = prepare(override)
    assert changed and content(found) == content(prepare(override, cache=None)[1])


@pytest.mark.slow
def test_other_rows_tokenizers_and_code_make_others(prepare, tmp_path, tokenizer, monkeypatch):
    prepare()
    (tmp_path / "rows.jsonl").write_text((tmp_path / "rows.jsonl").read_text().replace("8", "7"))
    assert prepare()[0] and not prepare()[0]
    other = load_tokenizer(load_recipe("quickstart").model)
    other.chat_template = "{{ messages }}"
    assert prepare(tokenizer=other)[0]
    other = load_tokenizer(load_recipe("quickstart").model)
    other.add_tokens(["zebra"])
    assert prepare(tokenizer=other)[0]
    monkeypatch.setattr(kept, "_digest_code", lambda: ["another version"])
    assert prepare()[0] and not prepare()[0]


def test_a_damaged_entry_is_written_again(prepare, tmp_path):
    expected = content(prepare()[1])
    for damage in ("truncate", "remove", "garble"):
        (entry,) = [path for path in (tmp_path / "cache" / "rows").iterdir() if path.is_dir()]
        if damage == "garble":
            (entry / "content.json").write_text("[")
        else:
            (file,) = (entry / "train").glob("*.arrow")
            file.write_bytes(file.read_bytes()[:100]) if damage == "truncate" else file.unlink()
        changed, found = prepare()
        assert changed and content(found) == expected and not prepare()[0], damage


def test_few_rows_are_kept_where_a_folder_is_given(prepare, tmp_path, monkeypatch):
    monkeypatch.setattr(training_rows, "user_cache_path", lambda _: tmp_path / "user")
    assert prepare(cache=None)[0] and prepare(cache=None)[0] and not (tmp_path / "user").exists()
    monkeypatch.setattr(training_rows, "KEPT_FROM", 7)
    assert prepare(cache=None)[0] and not prepare(cache=None)[0]


def test_what_nobody_read_for_a_month_is_deleted(prepare, tmp_path, monkeypatch):
    prepare()
    monkeypatch.setattr(kept, "KEPT_DAYS", -1)
    prepare("data.seed=1")
    assert not [path for path in (tmp_path / "cache" / "rows").iterdir() if path.is_dir()]


def test_a_bad_row_is_an_error_each_time(prepare, tmp_path):
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write(json.dumps({"question": "x", "answer": None}))
    for _ in range(2):
        with pytest.raises(MiloraError, match="row 10"):
            prepare()
    assert prepare("data.on_bad_row=drop")[1].report.bad == 1 == prepare("data.on_bad_row=drop")[1].report.bad
