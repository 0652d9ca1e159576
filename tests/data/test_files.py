"""Local files as they come: every format, compression and ending; and what is wrong with a damaged one, by line."""

import gzip
import json

import pyarrow
import pytest
from pyarrow import parquet

from milora import MiloraError
from milora.data.conversation import Conversation
from milora.data.rows import list_files
from milora.data.training_rows import load_training_rows
from milora.run.sections import DataSection

ROWS = [{"question": "007", "answer": "NA"}, {"question": 'a, "b"\tc', "answer": "two\nlines"}]
TURNS = [tuple(row.values()) for row in ROWS]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
CSV = b'question,answer\n007,NA\n"a, ""b""\tc","two\nlines"\n'
TSV = b'question\tanswer\n007\tNA\n"a, ""b""\tc"\t"two\nlines"\n'


def as_parquet():
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), sink)
    return sink.getvalue().to_pybytes()


def as_zst(content):
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


GOOD = {
    "rows.json": json.dumps(ROWS).encode(),
    "indented.json": json.dumps(ROWS, indent=1).encode(),
    "data.json": json.dumps({"version": 1, "data": ROWS}).encode(),
    "lines.json": LINES,
    "rows.jsonl": LINES,
    "list.jsonl": json.dumps(ROWS).encode(),
    "blank.lines.jsonl": b"\n" + LINES.replace(b"\n", b"\r\n\r\n"),
    "no_end.jsonl": LINES.rstrip(),
    "mark.jsonl": b"\xef\xbb\xbf" + LINES,
    "rows.csv": CSV,
    "mark.csv": b"\xef\xbb\xbf" + CSV,
    "blank.csv": CSV.replace(b"NA\n", b"NA\n\n"),
    "rows.tsv": TSV,
    "rows.parquet": as_parquet(),
    "UPPER.JSONL": LINES,
    "Rows.Csv.GZ": gzip.compress(CSV),
    "rows.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "rows.tsv.zst": as_zst(TSV),
    "rows.jsonl.zst": as_zst(LINES),
    "rows.parquet.gz": gzip.compress(as_parquet()),
    "rows[1].jsonl": LINES,
    "rows*?{a}.csv": CSV,
    "a name with spaces.json": LINES,
}
BAD = {
    "empty.jsonl": (b"", "is empty"),
    "blank.json": (b" \n\n", "is empty"),
    "empty.csv": (b"", "is empty"),
    "empty.parquet": (b"", "is empty"),
    "null.json": (b"null", "contains null, not rows"),
    "number.json": (b"3", "contains 3, not rows"),
    "text.json": (b'"question"', 'contains "question", not rows'),
    "null.jsonl": (b"null\n", "row 1: the row is null (NoneType), not an object"),
    "null_in_list.json": (json.dumps([ROWS[0], None]).encode(), "row 2: the row is null (NoneType), not an object"),
    "numbers.json": (b"[1, 2]", "row 1: the row is a number (int), not an object"),
    "none.json": (b"[]", "has no rows"),
    "header.csv": (b"question,answer\n", "has no rows"),
    "line.jsonl": (LINES + b'{"question": \n', "line 3: not valid JSON: Expecting value at column"),
    "cut.json": (json.dumps(ROWS, indent=1).encode()[:-20], "line 8: not valid JSON: Unterminated string"),
    "deep.json": (b"[" * 100_000, "line 1: not valid JSON: maximum recursion depth"),
    "long_number.jsonl": (b'{"question": ' + b"9" * 5000 + b"}\n", "line 1: not valid JSON: Exceeds the limit"),
    "latin.jsonl": (LINES + b'{"question": "\xe9"}\n', "line 3: the text is not UTF-8"),
    "utf16.csv": ("question,answer\nq,a\n".encode("utf-16"), "line 1: the text is not UTF-8"),
    "cells.csv": (b"question,answer\nq,a\nq,a,b\n", "line 3: 3 cells, but the header names 2 columns"),
    "few.tsv": (b"question\tanswer\nq\n", "line 2: 1 cells, but the header names 2 columns"),
    "quote.csv": (b'question,answer\nq,"a\n', "line 2: unexpected end of data"),
    "twice.csv": (b"question,question\nq,a\n", "line 1: two columns have the same name: question, question"),
    "empty_cell.csv": (b"question,answer\nq,\n", "row 1: column answer is empty (str)"),
    "semicolons.csv": (b"question;answer\nq;a\n", "row 1: the columns are those of no known format: question;answer"),
    "not.parquet": (LINES, "is not a whole Parquet file"),
    "cut.parquet": (as_parquet()[:-30], "is not a whole Parquet file"),
    "not.jsonl.gz": (LINES, "cannot be read: Not a gzipped file"),
    "cut.jsonl.gz": (gzip.compress(LINES)[:-12], "cannot be read: Compressed file ended"),
    "not.jsonl.zst": (LINES, "cannot be read: "),
    "cut.jsonl.zst": (as_zst(LINES)[:-12], "cut.jsonl.zst"),
    "rows.xlsx": (LINES, "rows are not read from such a file"),
}


def load(path, **settings):
    return load_training_rows(DataSection(name=str(path), **{"validation_rows": 0, **settings}))


def read(path, **settings):
    rows = [Conversation.from_row(row) for row in load(path, **settings).train]
    return [(row.question, row.answer) for row in rows]


@pytest.mark.parametrize("name", GOOD)
def test_every_cell_is_what_the_file_says(tmp_path, name):
    (tmp_path / name).write_bytes(GOOD[name])
    assert read(tmp_path / name) == TURNS
    assert list_files(DataSection(name=str(tmp_path / name))) == [[tmp_path / name]]


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_file_is_one_error(tmp_path, name):
    content, reason = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MiloraError) as refused:
        load(tmp_path / name)
    assert name in refused.value.message and reason in refused.value.message and refused.value.hint
    assert "\n" not in str(refused.value)


def test_parquet_cells_are_not_converted(tmp_path):
    rows = [{"question": "q", "answer": 1.0}, {"question": "q", "answer": None}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    with pytest.raises(MiloraError, match=r"row 1: column answer is a number \(float\), not text"):
        load(tmp_path / "rows.parquet")


def test_a_cell_may_be_long(tmp_path):
    (tmp_path / "long.csv").write_text(f"question,answer\nq,{'a' * 200_000}\n")
    assert len(read(tmp_path / "long.csv")[0][1]) == 200_000


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path):
    with pytest.raises(MiloraError, match="the folder contains no files of rows"):
        load(tmp_path)
    for name, text in (("b.jsonl", '{"question": "2", "answer": "b"}'), ("a.CSV", "question,answer\n1,a\n")):
        (tmp_path / name).write_text(text)
    (tmp_path / "README.md").write_text("about")
    (tmp_path / ".hidden.jsonl").write_text("null")
    assert read(tmp_path) == [("1", "a"), ("2", "b")]
    assert list_files(DataSection(name=str(tmp_path))) == [[tmp_path / "a.CSV", tmp_path / "b.jsonl"]]


@pytest.mark.parametrize("key", ["config", "split", "revision"])
@pytest.mark.parametrize("name", ["rows.jsonl", "gsm8k", "arithmetic", "chat"])
def test_hub_keys_are_refused_where_there_is_no_hub(tmp_path, name, key):
    section = DataSection(name=name, **{key: "test"})
    with pytest.raises(MiloraError, match=rf"data\.{key}=test: only a hub data set has one"):
        load_training_rows(section)
    with pytest.raises(MiloraError, match=rf"data\.{key}=test: only a hub data set has one"):
        list_files(section)


def test_hub_keys_go_to_the_hub(monkeypatch):
    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        return [{"question": "q", "answer": "a"}, {"question": "q", "answer": None}]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    settings = {"config": "main", "split": "test", "revision": "abc"}
    assert read("someone/rows", on_bad_row="drop", **settings) == [("q", "a")]
    assert asked == [(("someone/rows", "main"), {"split": "test", "revision": "abc"})]
    with pytest.raises(MiloraError, match="someone/rows, row 2: column answer is null"):
        load("someone/rows", **settings)
