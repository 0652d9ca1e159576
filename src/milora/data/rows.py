"""Where rows come from, as conversations: the embedded set, named public sets, a hub name, or a local file."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets

from milora.data.arithmetic import write_problems
from milora.data.conversation import Conversation
from milora.data.sets import NAMED_SETS, Read, Split, read_turn
from milora.method.errors import MiloraError
from milora.run.recipe import DataSection

FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
EMBEDDED = "arithmetic"
EMBEDDED_ROWS = {"train": 2000, "validation": 200, "test": 200}


def load_training_rows(section: DataSection) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Return the rows to train on and the held-out rows whose loss is watched, as `Conversation.to_row` writes them.

    A set with a validation split of its own gives that; otherwise the last `validation_rows` rows are held out before
    `rows` are taken.

    Raises:
        MiloraError: the set or the file does not exist, lacks a column, or has too few rows.
    """
    if section.name == EMBEDDED:
        train = write_problems("train", section.rows or EMBEDDED_ROWS["train"])
        held_out = write_problems("validation", section.validation_rows) if section.validation_rows else []
        return _as_table(train), _as_table(held_out)
    if section.name in NAMED_SETS:
        rows = _read_training_split(section.name, section.data_dir)
        if "validation" in NAMED_SETS[section.name].files:
            held_out_rows = _read_split(section.name, "validation", section.data_dir)
            return _take(rows, section.rows), _take(held_out_rows, section.validation_rows)
    else:
        rows = _read_columns(section)
    if len(rows) <= section.validation_rows:
        raise MiloraError(
            f"data.name={section.name} has {len(rows)} rows, and {section.validation_rows} of them would be held out",
            "lower data.validation_rows",
        )
    boundary = len(rows) - section.validation_rows
    # `select` refuses an empty range that starts at the end.
    held_out = rows.select(range(boundary, len(rows)) if section.validation_rows else [])
    return _take(rows.select(range(boundary)), section.rows), held_out


def load_rows(name: str, split: Split, data_dir: str | None) -> list[Conversation]:
    """Return a split of the embedded or a named set, from files under `data_dir` or from its published place.

    Raises:
        MiloraError: the set does not have the split, its file does not exist, or its rows have another form.
    """
    if name == EMBEDDED:
        return write_problems(split, EMBEDDED_ROWS[split])
    return [Conversation.from_row(row) for row in _read_split(name, split, data_dir)]


def list_files(section: DataSection) -> list[Path]:
    """Return the local files that training rows are read from.

    Raises:
        MiloraError: one of them does not exist.
    """
    if section.name in NAMED_SETS and section.data_dir is not None:
        # The test split's too: its questions are dropped from training.
        return [find_file(section.name, split, section.data_dir) for split in NAMED_SETS[section.name].files]
    path = Path(section.name)
    if path.suffix not in FORMATS:
        return []
    if not path.is_file():
        raise MiloraError(f"data.name={path}: the file does not exist", "check the path")
    return [path]


def _as_table(rows: Iterable[Conversation]) -> datasets.Dataset:
    return datasets.Dataset.from_list([row.to_row() for row in rows])


def _take(rows: datasets.Dataset, count: int | None) -> datasets.Dataset:
    return rows if count is None else rows.select(range(min(count, len(rows))))


def _read_training_split(name: str, data_dir: str | None) -> datasets.Dataset:
    """The training rows, without those whose question is in the set's own test split (MAWPS has 26 of them)."""
    rows = _read_split(name, "train", data_dir)
    if "test" not in NAMED_SETS[name].files:
        return rows
    test = {row.question for row in load_rows(name, "test", data_dir)}
    return rows.filter(lambda row: Conversation.from_row(row).question not in test)


def _read_split(name: str, split: Split, data_dir: str | None) -> datasets.Dataset:
    named = NAMED_SETS[name]
    if split not in named.files:
        raise MiloraError(f"{name} has no {split} split", f"it has {', '.join(named.files)}")
    table = _load_split(name, split, data_dir)
    try:
        return _read_rows(table, named.read)
    except KeyError as error:
        raise MiloraError(
            f"rows of {name} ({split}) have no column {error}: they have {', '.join(table.column_names)}",
            "use the published form of the set, or name the file in data.name with its columns",
        ) from error


def _read_rows(table: datasets.Dataset, read: Read) -> datasets.Dataset:
    # Its cache would not notice a change of our own code.
    return table.map(lambda row: read(row).to_row(), remove_columns=table.column_names, load_from_cache_file=False)


def _load_split(name: str, split: Split, data_dir: str | None) -> datasets.Dataset:
    if data_dir is not None:
        return _load_file(find_file(name, split, data_dir))
    remote = NAMED_SETS[name].remote
    if not remote:
        raise MiloraError(f"{name} is read from local files", "set data.data_dir to the folder that contains them")
    return _load(**remote[split])


def find_file(name: str, split: Split, data_dir: str) -> Path:
    """Return the local file of a named set's split.

    Raises:
        MiloraError: it does not exist.
    """
    file = Path(NAMED_SETS[name].files[split])
    candidates = [Path(data_dir) / file, Path(data_dir) / file.name]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise MiloraError(f"{candidates[0]} does not exist, nor {candidates[1]}", "point data_dir at the folder above it")


def _read_columns(section: DataSection) -> datasets.Dataset:
    files = list_files(section)
    table = _load_file(files[0]) if files else _load(section.name)
    missing = {section.question_column, section.answer_column} - set(table.column_names)
    if missing:
        raise MiloraError(
            f"data.name={section.name} has no column {', '.join(sorted(missing))}",
            f"it has {', '.join(table.column_names)}; set data.question_column and data.answer_column",
        )
    return _read_rows(table, read_turn(section.question_column, section.answer_column))


def _load_file(path: Path) -> datasets.Dataset:
    return _load(FORMATS[path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix], data_files=str(path))


def _load(path: str, split: str = "train", **arguments: Any) -> datasets.Dataset:
    try:
        return datasets.load_dataset(path, split=split, **arguments)
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        source = arguments.get("data_files", path)
        raise MiloraError(
            f"data {source!r} cannot be loaded: {str(error).splitlines()[0]}",
            f"name {', '.join([EMBEDDED, *NAMED_SETS])}, a hub data set, or a file ending in {', '.join(FORMATS)}",
        ) from error
