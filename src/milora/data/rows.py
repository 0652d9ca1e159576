"""Where rows come from, as conversations: the embedded sets, named public sets, a hub name, or local files."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import datasets

from milora.data.arithmetic import write_problems
from milora.data.conversation import Conversation
from milora.data.division import digest_texts, draw_held_out, draw_training, shuffle
from milora.data.files import FORMATS, find_files, format_of, read_rows
from milora.data.formats import BadRowError, describe, read_conversations
from milora.data.sets import NAMED_SETS, Split
from milora.method.errors import MiloraError
from milora.method.options import OnBadRow
from milora.run.recipe import DataSection

CONVERSATIONS = "chat"  # a small set of conversations, in the package
CONVERSATIONS_FILE = Path(__file__).with_name("chat.jsonl")
EMBEDDED = "arithmetic"
EMBEDDED_ROWS = {"train": 2000, "validation": 200, "test": 200}
CHUNK = 10_000  # conversations held as Python objects at a time

Numbered = Iterable[tuple[str, Any]]  # rows, each after the words that say where it is


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """The rows to train on and the held-out rows whose loss is watched, as `Conversation.to_row` writes them.

    `bad` counts the rows that could not be read and were dropped, `long` those with too many tokens, `copies` those
    left out of training because a held-out row has the same text.
    """

    train: datasets.Dataset
    held_out: datasets.Dataset
    bad: int
    long: int
    copies: int


@dataclass(slots=True)
class _Reader:
    """Turns rows into conversations: stops at a bad row or counts it, leaves out those that do not fit and counts."""

    on_bad_row: OnBadRow = "error"
    fits: Callable[[Conversation], bool] = lambda _: True
    bad: int = 0
    long: int = 0
    first: str = ""  # what the first bad row was

    def convert(self, rows: Numbered, read: Callable[[Any], list[Conversation]]) -> Iterator[Conversation]:
        for place, row in rows:
            try:
                yield from read(row)
            except BadRowError as error:
                if self.on_bad_row == "error":
                    raise MiloraError(f"{place}: {error}", error.hint) from error
                self.bad += 1
                self.first = self.first or f"{place}: {error}"

    def select(self, rows: Iterable[Conversation]) -> Iterator[Conversation]:
        for row in rows:
            if self.fits(row):
                yield row
            else:
                self.long += 1


def load_training_rows(section: DataSection, fits: Callable[[Conversation], bool] = lambda _: True) -> TrainingRows:
    """Return the rows of a recipe, without those that do not `fits`.

    A set with a validation split of its own gives that. Otherwise `validation_rows` rows of different texts are drawn
    by `data.seed`. Rows to train on that have the text of a held-out row are left out. Then the sources are weighted
    and mixed, and the first `rows` are taken.

    Raises:
        MiloraError: a set or a file does not exist, a row cannot be read, or there are too few rows.
    """
    reader, sources = _Reader(section.on_bad_row, fits), section.each_source()
    tables = [_as_table(reader.select(_read_training(source, reader))) for source in sources]
    digests = [digest_texts(table, section.seed) for table in tables]
    own = _read_validation(section, reader)
    _check_count(section, digests, reader, held_out=section.validation_rows if own is None else 0)
    rows, found = datasets.concatenate_datasets(tables), list(chain.from_iterable(digests))
    if own is None:
        held_out = rows.select(draw_held_out(found, section.validation_rows))
    else:
        held_out = _take(own, section.validation_rows)
    taken = set(digest_texts(held_out, section.seed))
    drawn = draw_training(digests, section.weights, taken)
    for source, table, indices in zip(sources, tables, drawn, strict=True):
        if len(table) and not indices:
            raise MiloraError(
                f"{source.name}: its weight, or what is held out, leaves none of its {len(table)} rows",
                "raise its weight in data.sources, or leave it out",
            )
    indices = list(chain.from_iterable(drawn))
    train = rows.select(shuffle(indices, section.seed) if section.sources else indices)
    copies = sum(digest in taken for digest in found) - (len(held_out) if own is None else 0)
    return TrainingRows(_take(train, section.rows), held_out, reader.bad, reader.long, copies)


def load_rows(name: str, split: Split, data_dir: str | None) -> list[Conversation]:
    """Return a split of the embedded or a named set, from files under `data_dir` or from its published place.

    Raises:
        MiloraError: the set does not have the split, its file does not exist, or its rows have another form.
    """
    if name == EMBEDDED:
        return write_problems(split, EMBEDDED_ROWS[split])
    return list(_read_split(name, split, data_dir, _Reader()))


def list_files(section: DataSection) -> list[list[Path]]:
    """Return the local files that training rows are read from, source by source.

    Raises:
        MiloraError: one of them does not exist, or rows are not read from such a file.
    """
    return [_list_files(source) for source in section.each_source()]


def _list_files(source: DataSection) -> list[Path]:
    _check_hub_keys(source)
    if source.title == CONVERSATIONS:
        return [CONVERSATIONS_FILE]
    if source.title in NAMED_SETS and source.data_dir is not None:
        # The test split's too: its questions are dropped from training.
        return [find_file(source.title, split, source.data_dir) for split in NAMED_SETS[source.title].files]
    return find_files(Path(source.title)) if _is_local(source.title) else []


def _is_local(name: str) -> bool:
    path = Path(name)
    if name == EMBEDDED or name in NAMED_SETS:
        return False
    return format_of(path) is not None or path.exists() or name.startswith((".", "/"))


def _check_hub_keys(section: DataSection) -> None:
    if section.title not in (EMBEDDED, CONVERSATIONS, *NAMED_SETS) and not _is_local(section.title):
        return
    for key in ("config", "split", "revision"):
        if getattr(section, key) != DataSection.model_fields[key].default:
            raise MiloraError(
                f"data.{key}={getattr(section, key)}: only a hub data set has one, and data.name={section.title} is "
                "not read as one",
                f"leave data.{key} out",
            )


def _check_count(section: DataSection, digests: list[list[bytes]], reader: _Reader, *, held_out: int) -> None:
    dropped = f"; {reader.bad} bad rows were dropped, the first was {reader.first}" if reader.bad else ""
    dropped += f"; {reader.long} have more than data.max_tokens={section.max_tokens} tokens" if reader.long else ""
    for source, found in zip(section.each_source(), digests, strict=True):
        if not found:
            raise MiloraError(f"data.name={source.title} has no rows{dropped}", "name a file or a set with rows")
    found = list(chain.from_iterable(digests))
    different = len(set(found))
    if different <= held_out:
        texts = "" if different == len(found) else f" with {different} different texts"
        raise MiloraError(
            f"data.name={section.title} has {len(found)} rows{texts}, and {held_out} of them would be held out"
            f"{dropped}",
            "lower data.validation_rows",
        )


def _as_table(rows: Iterable[Conversation]) -> datasets.Dataset:
    part = datasets.Value("string")
    features = datasets.Features(
        messages=[{"role": part, "parts": [{"text": part, "image": part}]}], fields=[{"name": part, "value": part}]
    )
    remaining = iter(rows)
    chunks = []
    while chunk := [row.to_row() for row in islice(remaining, CHUNK)]:
        chunks.append(datasets.Dataset.from_list(chunk, features=features))
    return datasets.concatenate_datasets(chunks) if chunks else datasets.Dataset.from_list([])


def _take(rows: datasets.Dataset, count: int | None) -> datasets.Dataset:
    return rows if count is None else rows.select(range(min(count, len(rows))))


def _read_training(source: DataSection, reader: _Reader) -> Iterable[Conversation]:
    """The rows of one source that may be trained on."""
    _check_hub_keys(source)
    if source.title == EMBEDDED:
        return write_problems("train", source.rows or EMBEDDED_ROWS["train"])
    if source.title in NAMED_SETS:
        return _read_training_split(source.title, source.data_dir, reader)
    return _read_own(source, reader)


def _read_validation(section: DataSection, reader: _Reader) -> datasets.Dataset | None:
    """The validation split of a set that has one; None of other sets and of several sources."""
    if section.title == EMBEDDED:
        return _as_table(reader.select(write_problems("validation", section.validation_rows)))
    if section.title in NAMED_SETS and "validation" in NAMED_SETS[section.title].files:
        return _as_table(reader.select(_read_split(section.title, "validation", section.data_dir, reader)))
    return None


def _read_own(section: DataSection, reader: _Reader) -> Iterator[Conversation]:
    """The rows of a user's files, of a hub set, or of the package's conversations."""
    files = _list_files(section)
    rows: Numbered = chain.from_iterable(map(_number, files)) if files else _load_hub(section)
    asked = (section.question_column, section.answer_column)
    defaults = tuple(DataSection.model_fields[key].default for key in ("question_column", "answer_column"))
    columns = asked if asked != defaults else None
    return reader.convert(rows, lambda row: read_conversations(row, columns))


def _number(file: Path) -> Numbered:
    return ((f"{file}, row {number}", row) for number, row in enumerate(read_rows(file), 1))


def _load_hub(section: DataSection) -> Numbered:
    table = _load(section.title, section.config, section.split, revision=section.revision)
    return ((f"{section.title}, row {number}", row) for number, row in enumerate(table, 1))


def _read_training_split(name: str, data_dir: str | None, reader: _Reader) -> Iterator[Conversation]:
    """The training rows, without those whose question is in the set's own test split (MAWPS has 26 of them)."""
    rows = _read_split(name, "train", data_dir, reader)
    if "test" not in NAMED_SETS[name].files:
        return rows
    test = {row.question for row in _read_split(name, "test", data_dir, _Reader(reader.on_bad_row))}
    return (row for row in rows if row.question not in test)


def _read_split(name: str, split: Split, data_dir: str | None, reader: _Reader) -> Iterator[Conversation]:
    named = NAMED_SETS[name]
    if split not in named.files:
        raise MiloraError(f"{name} has no {split} split", f"it has {', '.join(named.files)}")

    def read(row: Any) -> list[Conversation]:
        if not isinstance(row, Mapping):
            raise BadRowError(f"the row is {describe(row)}, not an object of columns")
        try:
            conversation = named.read(row)
            return [conversation] if conversation else []
        except KeyError as error:
            raise MiloraError(
                f"rows of {name} ({split}) have no column {error}: they have {', '.join(row)}",
                "use the published form of the set, or name the file in data.name with its columns",
            ) from error

    rows = reader.convert(_load_split(name, split, data_dir), read)
    return named.join(rows) if named.join else rows


def _load_split(name: str, split: Split, data_dir: str | None) -> Numbered:
    if data_dir is not None:
        return _number(find_file(name, split, data_dir))
    remote = NAMED_SETS[name].remote
    if not remote:
        raise MiloraError(f"{name} is read from local files", "set data.data_dir to the folder that contains them")
    return ((f"{name} ({split}), row {number}", row) for number, row in enumerate(_load(**remote[split]), 1))


def find_file(name: str, split: Split, data_dir: str) -> Path:
    """Return the local file of a named set's split.

    Raises:
        MiloraError: it does not exist.
    """
    return _find(NAMED_SETS[name].files[split], data_dir)


def _find(file: str, data_dir: str) -> Path:
    candidates = [Path(data_dir) / file, Path(data_dir) / Path(file).name]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise MiloraError(f"{candidates[0]} does not exist, nor {candidates[1]}", "point data_dir at the folder above it")


def _load(path: str, name: str | None = None, split: str = "train", **arguments: Any) -> datasets.Dataset:
    try:
        return datasets.load_dataset(path, name, split=split, **arguments)
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        source = arguments.get("data_files", path)
        raise MiloraError(
            f"data {source!r} cannot be loaded: {' '.join(str(error).split())[:400]}",
            f"name {', '.join([EMBEDDED, CONVERSATIONS, *NAMED_SETS])}, a hub data set (with data.config and "
            f"data.split), or a file or folder of {', '.join(FORMATS)}",
        ) from error
