"""Rows from every kind of source."""

import csv
import json

import datasets
import pytest

from milora import MiloraError
from milora.run.data import load_rows, load_training_rows
from milora.run.recipe import DataSection

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
    train, held_out = load_training_rows(section)
    assert train == [{"question": f"what is {i}?", "answer": f"it is {i}"} for i in range(5)]
    assert [row["question"] for row in held_out] == ["what is 7?", "what is 8?", "what is 9?"]


def test_wrong_columns_are_listed(tmp_path):
    with pytest.raises(MiloraError, match=r"no column answer, question \(it has q, a, extra"):
        load_training_rows(DataSection(name=_write(tmp_path, "jsonl")))


def test_missing_broken_and_short_files(tmp_path):
    with pytest.raises(MiloraError, match="no such file"):
        load_training_rows(DataSection(name=str(tmp_path / "none.jsonl")))
    (tmp_path / "broken.jsonl").write_text('{"q": 1\nnot json')
    with pytest.raises(MiloraError, match=r"broken\.jsonl.* cannot be loaded"):
        load_training_rows(DataSection(name=str(tmp_path / "broken.jsonl")))
    with pytest.raises(MiloraError, match="has 10 rows, of which 64"):
        load_training_rows(DataSection(name=_write(tmp_path, "csv"), question_column="q", answer_column="a"))
    with pytest.raises(MiloraError, match="set data.data_dir"):
        load_rows("mawps", "train", None)
    with pytest.raises(MiloraError, match=r"gsm8k/train\.jsonl does not exist"):
        load_rows("gsm8k", "train", str(tmp_path))


def test_gsm8k(data_dir):
    rows = load_rows("gsm8k", "train", data_dir)
    assert len(rows) == 7473
    assert rows[0]["answer"].endswith("\nThe answer is: 72") and "<<" not in rows[0]["answer"]
    assert len(load_rows("gsm8k", "test", f"{data_dir}/gsm8k")) == 1319


def test_mawps_drops_its_own_test_questions(data_dir):
    train, test = (load_rows("mawps", split, data_dir) for split in ("train", "test"))
    assert len(test) == 238 and len(train) < 1898
    assert not {row["question"] for row in train} & {row["question"] for row in test}
    assert all("The answer is: " in row["answer"] for row in train)


def test_arc_easy(data_dir):
    rows = load_rows("arc_easy", "test", data_dir)
    assert len(rows) == 2376 and rows[0]["answer"] == "the correct answer is answer1"


def test_arc_of_the_hub_reads_as_the_local_file_does(data_dir):
    from milora.run.data import _read_arc

    local = load_rows("arc_easy", "test", data_dir)[0]
    hub = {
        "question": "Which statement best explains why photosynthesis is the foundation of most food webs?",
        "choices": {
            "text": [
                "Sunlight is the source of energy for nearly all ecosystems.",
                "Most ecosystems are found on land instead of in water.",
                "Carbon dioxide is more available than other gases.",
                "The producers in all ecosystems are plants.",
            ],
            "label": ["A", "B", "C", "D"],
        },
        "answerKey": "A",
    }
    assert _read_arc(hub) == local
