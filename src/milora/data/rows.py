"""Rows of question and answer: the embedded set, named real sets, a hub name, or a local file."""

from pathlib import Path
from typing import Any

import datasets

from milora.method.errors import MiloraError
from milora.data.arithmetic import write_problems
from milora.run.recipe import DataSection
from milora.data.sets import NAMED_SETS, Row, Split

FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
EMBEDDED_ROWS = {"train": 2000, "validation": 200, "test": 200}


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

    Raises:
        MiloraError: the set has no such split, its file is not there, or its rows have another form.
    """
    if name == "arithmetic":
        return write_problems(split, EMBEDDED_ROWS[split])
    named = NAMED_SETS[name]
    if split not in named.files:
        raise MiloraError(f"{name} has no {split} split", f"it has {', '.join(named.files)}")
    table = _load_split(name, split, data_dir)
    try:
        rows = [named.read(row) for row in table]
    except KeyError as error:
        raise MiloraError(
            f"rows of {name} ({split}) have no column {error}: they have {', '.join(table.column_names)}",
            "use the published form of the set, or name the file in data.name with its columns",
        ) from error
    if split == "train" and "test" in named.files:
        test = {row["question"] for row in load_rows(name, "test", data_dir)}
        rows = [row for row in rows if row["question"] not in test]
    return rows


def _load_split(name: str, split: Split, data_dir: str | None) -> datasets.Dataset:
    named = NAMED_SETS[name]
    if data_dir is None:
        if not named.remote:
            raise MiloraError(f"{name} is read from local files", "set data.data_dir to the folder that holds them")
        return _load(**named.remote[split])
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
        table = _load(section.name)
    missing = {section.question_column, section.answer_column} - set(table.column_names)
    if missing:
        raise MiloraError(
            f"data.name={section.name} has no column {', '.join(sorted(missing))}",
            f"it has {', '.join(table.column_names)}; set data.question_column and data.answer_column",
        )
    return [{"question": str(row[section.question_column]), "answer": str(row[section.answer_column])} for row in table]


def _load_file(path: Path) -> datasets.Dataset:
    return _load(FORMATS[path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix], data_files=str(path))


def _load(path: str, split: str = "train", **arguments: Any) -> datasets.Dataset:
    try:
        return datasets.load_dataset(path, split=split, **arguments)
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        source = arguments.get("data_files", path)
        raise MiloraError(
            f"data {source!r} cannot be loaded: {str(error).splitlines()[0]}",
            f"name {', '.join(['arithmetic', *NAMED_SETS])}, a hub data set, or a file ending in {', '.join(FORMATS)}",
        ) from error
