"""Rows from every kind of source."""

import csv
import gzip
import json
import re

import datasets
import pytest

from milora import MiloraError
from milora.data.conversation import Conversation
from milora.data.rows import CONVERSATIONS_FILE, list_files, load_rows
from milora.data.sets import COMMONSENSE
from milora.data.training_rows import load_training_rows
from milora.run.sections import DataSection

ROWS = [{"q": f"what is {i}?", "a": f"it is {i}", "extra": i} for i in range(10)]


def _write(folder, suffix):
    path = folder / f"rows.{suffix}"
    if suffix == "json":
        path.write_text(json.dumps(ROWS))
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif suffix == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ROWS[0])
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        datasets.Dataset.from_list(ROWS).to_parquet(path)
    return str(path)


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "parquet"])
def test_local_files(tmp_path, suffix):
    section = DataSection(
        name=_write(tmp_path, suffix), question_column="q", answer_column="a", validation_rows=3, rows=5
    )
    rows = load_training_rows(section)
    train, held_out = ([Conversation.from_row(row) for row in table] for table in (rows.train, rows.held_out))
    everything = [Conversation.of_turn(f"what is {i}?", f"it is {i}") for i in range(10)]
    assert train == [row for row in everything if row not in held_out][:5]
    assert held_out == [row for row in everything if row in held_out] and len(held_out) == 3


def test_no_row_need_be_held_out(tmp_path):
    section = DataSection(name=_write(tmp_path, "jsonl"), question_column="q", answer_column="a", validation_rows=0)
    rows = load_training_rows(section)
    assert (len(rows.train), len(rows.held_out)) == (10, 0)


def test_wrong_columns_are_listed(tmp_path):
    with pytest.raises(MiloraError, match=r"row 1: the columns are those of no known format: q, a, extra"):
        load_training_rows(DataSection(name=_write(tmp_path, "jsonl")))
    with pytest.raises(MiloraError, match=r"row 1: no column answer; there are q, a, extra"):
        load_training_rows(DataSection(name=_write(tmp_path, "csv"), question_column="q"))


def test_missing_broken_and_short_files(tmp_path):
    with pytest.raises(MiloraError, match="the file does not exist"):
        load_training_rows(DataSection(name=str(tmp_path / "none.jsonl")))
    (tmp_path / "broken.jsonl").write_text('{"q": 1\nnot json')
    with pytest.raises(MiloraError, match=r"broken\.jsonl, line 1: not valid JSON"):
        load_training_rows(DataSection(name=str(tmp_path / "broken.jsonl")))
    with pytest.raises(MiloraError, match="has 10 rows, and 64 of them"):
        load_training_rows(DataSection(name=_write(tmp_path, "csv"), question_column="q", answer_column="a"))
    with pytest.raises(MiloraError, match="set data.data_dir"):
        load_rows("mawps", "train", None)
    with pytest.raises(MiloraError, match=r"gsm8k/train\.jsonl does not exist"):
        load_rows("gsm8k", "train", str(tmp_path))


def test_gsm8k(data_dir):
    rows = load_rows("gsm8k", "train", data_dir)
    assert len(rows) == 7473
    assert rows[0].answer.endswith("\nThe answer is: 72") and "<<" not in rows[0].answer
    assert len(load_rows("gsm8k", "test", f"{data_dir}/gsm8k")) == 1319


def test_mawps_drops_its_own_test_questions(data_dir):
    table = load_training_rows(DataSection(name="mawps", data_dir=data_dir)).train
    train, test = [Conversation.from_row(row) for row in table], load_rows("mawps", "test", data_dir)
    assert len(test) == 238 and len(train) < 1898
    assert not {row.question for row in train} & {row.question for row in test}
    assert all("The answer is: " in row.answer for row in train)


COUNTS = [
    ("math", "test", 5000),
    ("arc_easy", "test", 2376),
    ("arc_challenge", "test", 1172),
    ("boolq", "test", 3270),
    ("openbookqa", "test", 500),
    ("social_i_qa", "test", 1954),
    ("humaneval", "test", 164),
    ("code_alpaca", "train", 2017),
]


@pytest.mark.parametrize(("name", "split", "count"), COUNTS, ids=[row[0] for row in COUNTS])
def test_named_sets_have_the_protocols_rows(data_dir, name, split, count):
    rows = load_rows(name, split, data_dir)
    assert len(rows) == count and all(row.question for row in rows)
    if split == "test" and name in COMMONSENSE:
        assert all(re.fullmatch(r"the correct answer is \w+", row.answer) for row in rows)


PUBLISHED = {
    "metamath": ("metamath/MetaMathQA-395K.json", {"query": "q", "response": "r", "type": "GSM_Rephrased"}),
    "commonsense_170k": (
        "commonsense/commonsense_170k.json",
        {"instruction": "q", "input": "", "output": "r", "answer": "true"},
    ),
    "codefeedback": ("code/CodeFeedback-Filtered-Instruction.jsonl", {"query": "q", "answer": "r", "lang": "python"}),
    "math": ("math/test.jsonl", {"instruction": "q", "output": "r", "input": ""}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_formats_are_read(tmp_path, name):
    file, row = PUBLISHED[name]
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).write_text(json.dumps(row) + "\n" if file.endswith("l") else json.dumps([row]))
    split = "test" if name == "math" else "train"
    assert load_rows(name, split, str(tmp_path)) == [Conversation.of_turn("q", "r")]
    (tmp_path / file).write_text(json.dumps({"text": "x"}) + "\n")
    with pytest.raises(MiloraError, match=rf"rows of {name} .* have no column"):
        load_rows(name, split, str(tmp_path))


def test_an_input_follows_its_instruction(data_dir):
    questions = [row.question for row in load_rows("code_alpaca", "train", data_dir)]
    assert any("\n" in question for question in questions)


def test_a_split_that_a_set_lacks():
    with pytest.raises(MiloraError, match="math has no train split"):
        load_rows("math", "train", None)


def test_a_bad_cell_of_a_named_set_is_refused_or_dropped(tmp_path):
    rows = [{"query": "q", "response": "r"}, {"query": None, "response": "r"}, {"query": "q2", "response": "r"}]
    (tmp_path / "MetaMathQA-395K.json").write_text(json.dumps(rows))
    section = DataSection(name="metamath", data_dir=str(tmp_path), validation_rows=1)
    with pytest.raises(MiloraError, match=r"MetaMathQA-395K\.json, row 2: column query is null \(NoneType\), not text"):
        load_training_rows(section)
    found = load_training_rows(section.model_copy(update={"on_bad_row": "drop"}))
    assert (len(found.train), len(found.held_out), found.bad) == (1, 1, 1)


def test_the_conversations_in_the_package():
    found = load_training_rows(DataSection(name="chat", validation_rows=8))
    rows = [Conversation.from_row(row) for row in (*found.train, *found.held_out)]
    assert len(rows) == 40 == len({row.answer + row.question for row in rows}) and found.bad == 0
    assert sum(row.messages[0].role == "system" for row in rows) >= 5
    assert sum(len(row.messages) > 3 for row in rows) >= 5
    assert [CONVERSATIONS_FILE] in list_files(DataSection(name="chat"))


def test_ultrafeedback_is_its_chosen_answers(data_dir):
    rows = load_rows("ultrafeedback", "train", data_dir)
    with gzip.open(f"{data_dir}/instruction/chat/ultrafeedback_binarized_train350.jsonl.gz", "rt") as file:
        published = [json.loads(line) for line in file]
    assert len(rows) == len(published) == 350 and len(load_rows("ultrafeedback", "test", data_dir)) == 100
    for row, found in zip(rows, published, strict=True):
        assert [(message.role, message.text) for message in row.messages] == [
            (message["role"], message["content"]) for message in found["chosen"]
        ]
    trained = load_training_rows(DataSection(name="ultrafeedback", data_dir=data_dir, validation_rows=0)).train
    assert len(trained) == 350, "no question of its test split is in its training split"


def write_chosen(tmp_path, *pairs):
    (tmp_path / "instruction" / "chat").mkdir(parents=True, exist_ok=True)
    for name in ("train350.jsonl.gz", "test100.jsonl"):
        path = tmp_path / "instruction" / "chat" / f"ultrafeedback_binarized_{name}"
        with gzip.open(path, "wt") if name.endswith("gz") else path.open("w") as file:
            file.writelines(json.dumps({"chosen": chosen, "rejected": []}) + "\n" for chosen in pairs)


def test_rows_of_ultrafeedback_that_cannot_be_read(tmp_path):
    asked = {"role": "user", "content": "Hi?"}
    answer = {"role": "assistant", "content": "Hi!"}
    for chosen, reason in (
        ("Hi!", "the conversation has no message of the user"),
        ([asked], "ends on the user"),
        ([asked, {**answer, "content": None}], r"column chosen\[1\]\.content is null"),
        ([asked, {**answer, "content": ""}], r"column chosen\[1\]\.content is empty"),
    ):
        write_chosen(tmp_path, chosen)
        with pytest.raises(MiloraError, match=reason):
            load_rows("ultrafeedback", "train", str(tmp_path))
    write_chosen(tmp_path, [asked], *([{**asked, "content": f"{number}?"}, answer] for number in range(3)))
    section = DataSection(name="ultrafeedback", data_dir=str(tmp_path), validation_rows=0, on_bad_row="drop")
    with pytest.raises(MiloraError, match="has no rows; 1 bad rows were dropped"):
        load_training_rows(section)  # its test split has the same questions, which are read past a bad row


def test_lora_gas_rows_of_codefeedback_end_with_their_first_block(tmp_path):
    answers = {
        "Sure:\n```python\nx = 1\n```\nIt is 1.\n```\ny\n```": "Sure:\n```python\nx = 1\n```",
        "```\nnever closed": "```\nnever closed```",
        "No code at all.": None,
    }
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "CodeFeedback-Filtered-Instruction.jsonl").write_text(
        "".join(json.dumps({"query": f"q{n}", "answer": answer}) + "\n" for n, answer in enumerate(answers))
    )
    rows = load_rows("codefeedback_first_block", "train", str(tmp_path))
    assert [(row.question, row.answer) for row in rows] == [
        (f"q{n}", kept) for n, kept in enumerate(answers.values()) if kept
    ]
    assert len(load_rows("codefeedback", "train", str(tmp_path))) == 3
