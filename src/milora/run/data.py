"""Rows of question and answer: the embedded set, named real sets, a hub name, or a local file."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import datasets

from milora.method.errors import MiloraError
from milora.run.arithmetic import write_problems
from milora.run.recipe import DataSection

Split = Literal["train", "validation", "test"]
Row = dict[str, str]

FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
EMBEDDED_ROWS = {"train": 2000, "validation": 200, "test": 200}


@dataclass(frozen=True, slots=True)
class NamedSet:
    """A public set: where it stands on the hub, its files in a `data_dir`, and how its rows read."""

    hub: tuple[str, str] | None
    files: dict[Split, str]
    read: Callable[[dict[str, Any]], Row]


def _read_gsm8k(row: dict[str, Any]) -> Row:
    worked, _, number = row["answer"].rpartition("\n#### ")
    worked = re.sub(r"<<.*?>>", "", worked)  # the calculator's annotations
    return {"question": row["question"], "answer": f"{worked}\nThe answer is: {number.strip()}"}


def _read_mawps(row: dict[str, Any]) -> Row:
    equation = re.sub(r"^[xX]=", "", row["equation"]).replace(".0", "")
    return {"question": row["original_text"], "answer": f"{equation} = {row['ans']:g}. The answer is: {row['ans']:g}"}


def _read_arc(row: dict[str, Any]) -> Row:
    if "instruction" in row:  # as LLM-Adapters carries it
        return {"question": row["instruction"], "answer": row["output"]}
    options = row["choices"]["text"]
    answers = [f"answer{number}" for number in range(1, len(options) + 1)]
    listed = " ".join(f"A{answer[1:]}: {text}" for answer, text in zip(answers, options, strict=True))
    question = f"Please choose the correct answer to the question: {row['question']}\n\n{listed}\n\n"
    correct = answers[row["choices"]["label"].index(row["answerKey"])]
    return {"question": f"{question}Answer format: {'/'.join(answers)}", "answer": f"the correct answer is {correct}"}


NAMED_SETS = {
    "gsm8k": NamedSet(
        ("openai/gsm8k", "main"), {"train": "gsm8k/train.jsonl", "test": "gsm8k/test.jsonl"}, _read_gsm8k
    ),
    "mawps": NamedSet(
        None,
        {"train": "mawps/trainset.json", "validation": "mawps/validset.json", "test": "mawps/testset.json"},
        _read_mawps,
    ),
    "arc_easy": NamedSet(
        ("allenai/ai2_arc", "ARC-Easy"),
        {"train": "commonsense/ARC-Easy/train.json", "test": "commonsense/ARC-Easy/test.json"},
        _read_arc,
    ),
}


def load_training_rows(section: DataSection) -> tuple[list[Row], list[Row]]:
    """Return the rows to train on and the held-out rows whose loss is watched.

    A set with a validation split of its own gives that; otherwise the last `validation_rows` rows are held out before
    `rows` are taken.

    Raises:
        MiloraError: no such set or file, columns that are not there, or too few rows.
    """
    if section.name == "arithmetic":
        train = write_problems("train", section.rows or EMBEDDED_ROWS["train"])
        return train, write_problems("validation", section.validation_rows) if section.validation_rows else []
    if section.name in NAMED_SETS:
        rows = load_rows(section.name, "train", section.data_dir)
        if "validation" in NAMED_SETS[section.name].files:
            held_out = load_rows(section.name, "validation", section.data_dir)
            return rows[: section.rows], held_out[: section.validation_rows]
    else:
        rows = _read_columns(section)
    if len(rows) <= section.validation_rows:
        raise MiloraError(
            f"data.name={section.name} has {len(rows)} rows, of which {section.validation_rows} are to be held out",
            "lower data.validation_rows",
        )
    boundary = len(rows) - section.validation_rows
    return rows[:boundary][: section.rows], rows[boundary:]


def load_rows(name: str, split: Split, data_dir: str | None) -> list[Row]:
    """Return a split of a named set, from files under `data_dir` or from the hub.

    Training rows whose question stands in the set's own test split are dropped (MAWPS has 26 of them).
    """
    if name == "arithmetic":
        return write_problems(split, EMBEDDED_ROWS[split])
    named = NAMED_SETS[name]
    rows: list[Row] = [named.read(row) for row in _load_split(name, split, data_dir)]
    if split == "train":
        test = {row["question"] for row in load_rows(name, "test", data_dir)}
        rows = [row for row in rows if row["question"] not in test]
    return rows


def _load_split(name: str, split: Split, data_dir: str | None) -> datasets.Dataset:
    named = NAMED_SETS[name]
    if data_dir is None:
        if named.hub is None:
            raise MiloraError(f"{name} is read from local files", "set data.data_dir to the folder that holds them")
        return _load(named.hub[0], name=named.hub[1], split=split)
    file = Path(named.files[split])
    candidates = [Path(data_dir) / file, Path(data_dir) / file.name]
    for candidate in candidates:
        if candidate.is_file():
            return _load_file(candidate)
    raise MiloraError(f"{candidates[0]} does not exist, nor {candidates[1]}", "point data_dir at the folder above it")


def _read_columns(section: DataSection) -> list[Row]:
    path = Path(section.name)
    if path.suffix in FORMATS:
        if not path.is_file():
            raise MiloraError(f"data.name={path}: there is no such file", "check the path")
        table = _load_file(path)
    else:
        table = _load(section.name, split="train")
    missing = {section.question_column, section.answer_column} - set(table.column_names)
    if missing:
        raise MiloraError(
            f"data.name={section.name} has no column {', '.join(sorted(missing))}",
            f"it has {', '.join(table.column_names)}; set data.question_column and data.answer_column",
        )
    return [{"question": str(row[section.question_column]), "answer": str(row[section.answer_column])} for row in table]


def _load_file(path: Path) -> datasets.Dataset:
    return _load(FORMATS[path.suffix], data_files=str(path), split="train")


def _load(path: str, **arguments: Any) -> datasets.Dataset:
    try:
        return datasets.load_dataset(path, **arguments)
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        source = arguments.get("data_files", path)
        raise MiloraError(
            f"data {source!r} cannot be loaded: {str(error).splitlines()[0]}",
            f"name {', '.join(['arithmetic', *NAMED_SETS])}, a hub data set, or a file ending in {', '.join(FORMATS)}",
        ) from error
