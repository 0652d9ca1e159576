"""Where rows come from, as conversations: the embedded sets, named public sets, a hub name, or local files."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import datasets

from milora.data.arithmetic import write_problems
from milora.data.conversation import Conversation
from milora.data.files import FORMATS, find_files, format_of, read_rows
from milora.data.formats import read_conversations
from milora.data.packaged import PACKAGED
from milora.data.picture_sets import PICTURE_SETS, read_picture_set
from milora.data.pictures import check_pictures
from milora.data.placing import locate_pictures
from milora.data.problems import BadRowError, describe
from milora.data.published import candidates
from milora.data.sets import NAMED_SETS, Split
from milora.method.errors import MiloraError
from milora.method.options import OnBadRow
from milora.run.identity import hash_local
from milora.run.sections import DataSection

CONVERSATIONS = "chat"  # a small set of conversations, in the package
CONVERSATIONS_FILE = Path(__file__).with_name("chat.jsonl")
EMBEDDED = "arithmetic"
EMBEDDED_ROWS = {"train": 2000, "validation": 200, "test": 200}

LISTED = 20  # pictures in an error

Numbered = Iterable[tuple[str, Any]]  # rows, each after the words that say where it is


@dataclass(slots=True)
class Reader:
    """Turns rows into conversations: stops at a bad row, or counts it."""

    on_bad_row: OnBadRow = "error"
    bad: int = 0
    first: str = ""  # what the first bad row was
    pictures: dict[str, list[str]] = field(default_factory=dict)  # the rows of each picture, by its path

    def convert(
        self, rows: Numbered, read: Callable[[Any], list[Conversation]], folder: Path | None = None
    ) -> Iterator[Conversation]:
        """Yield the conversations of rows, whose pictures are in `folder`."""
        for place, row in rows:
            try:
                found = read(row)
                located = [locate_pictures(each, folder) for each in found] if folder else found
                yield from self.note(located, place)
            except BadRowError as error:
                if self.on_bad_row == "error":
                    raise MiloraError(f"{place}: {error}", error.hint) from error
                self.bad += 1
                self.first = self.first or f"{place}: {error}"

    def note(self, conversations: Iterable[Conversation], place: str = "a row") -> Iterator[Conversation]:
        """Yield the conversations of the row at `place`, whose pictures are then known."""
        for conversation in conversations:
            for path in conversation.images:
                self.pictures.setdefault(path, []).append(place)
            yield conversation

    def find_bad_pictures(self) -> set[str]:
        """Return the paths of pictures that cannot be used, whose rows are counted as bad.

        Raises:
            MiloraError: there are some, and bad rows are not to be dropped.
        """
        problems = check_pictures(self.pictures)
        if not problems:
            return set()
        said = [f"{', '.join(self.pictures[path][:3])}: {error.message}" for path, error in problems.items()]
        if self.on_bad_row == "error":
            rows = sum(len(self.pictures[path]) for path in problems)
            more = f"; and {len(said) - LISTED} more" if len(said) > LISTED else ""
            raise MiloraError(
                f"{len(said)} pictures of {rows} rows cannot be used: {'; '.join(said[:LISTED])}{more}",
                "correct them or data.image_dir, or set data.on_bad_row=drop: such rows are then dropped and counted",
            )
        self.bad += len({place for path in problems for place in self.pictures[path]})
        self.first = self.first or said[0]
        return set(problems)


def load_rows(name: str, split: Split, data_dir: str | None) -> list[Conversation]:
    """Return a split of the embedded, a named or a picture set, from files under `data_dir` or its published place.

    Raises:
        MiloraError: the set does not have the split, its file does not exist, or its rows have another form.
    """
    if name == EMBEDDED:
        return write_problems(split, EMBEDDED_ROWS[split])
    if name in PACKAGED:
        return PACKAGED[name](split)
    if name in PICTURE_SETS:
        return read_picture_set(name, data_dir)
    return list(_read_split(name, split, data_dir, Reader()))


def list_files(section: DataSection) -> list[list[Path]]:
    """Return the local files that training rows are read from, source by source.

    Raises:
        MiloraError: one of them does not exist, or rows are not read from such a file.
    """
    return [_list_files(source) for source in section.each_source()]


def identify_sources(section: DataSection) -> list[list[str]]:
    """Return what decides the rows of each source: its files' digests, or datasets' fingerprints of what is published.

    Raises:
        MiloraError: one of them does not exist.
    """
    return [_identify(source) for source in section.each_source()]


def _identify(source: DataSection) -> list[str]:
    name, files = source.title, _list_files(source)
    # Rows of a named set are read otherwise than those of a file.
    known = [name] if name in (EMBEDDED, *NAMED_SETS, *PACKAGED) else []
    if files or name == EMBEDDED or name in PACKAGED:
        return [*known, *map(hash_local, files)]
    tables = [_load(**each) for each in NAMED_SETS[name].remote.values()] if known else [_load_table(source)]
    return [*known, *(table._fingerprint for table in tables)]


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
    if name in (EMBEDDED, *NAMED_SETS, *PACKAGED):
        return False
    return format_of(path) is not None or path.exists() or name.startswith((".", "/"))


def _check_hub_keys(section: DataSection) -> None:
    if section.title not in (EMBEDDED, CONVERSATIONS, *NAMED_SETS, *PACKAGED) and not _is_local(section.title):
        return
    for key in ("config", "split", "revision"):
        if getattr(section, key) != DataSection.model_fields[key].default:
            raise MiloraError(
                f"data.{key}={getattr(section, key)}: only a hub data set has one, and data.name={section.title} is "
                "not read as one",
                f"leave data.{key} out",
            )


def read_training(source: DataSection, reader: Reader) -> Iterable[Conversation]:
    """The rows of one source that may be trained on."""
    _check_hub_keys(source)
    if source.title == EMBEDDED:
        return write_problems("train", source.rows or EMBEDDED_ROWS["train"])
    if source.title in PACKAGED:
        return reader.note(PACKAGED[source.title]("train"))
    if source.title in NAMED_SETS:
        return _read_training_split(source, reader)
    return _read_own(source, reader)


def read_validation(section: DataSection, reader: Reader) -> Iterable[Conversation] | None:
    """The validation split of a set that has one; None of other sets and of several sources."""
    if section.title == EMBEDDED:
        return write_problems("validation", section.validation_rows)
    if section.title in NAMED_SETS and "validation" in NAMED_SETS[section.title].files:
        return _read_split(section.title, "validation", section.data_dir, reader)
    return None


def _read_own(section: DataSection, reader: Reader) -> Iterator[Conversation]:
    """The rows of a user's files, of a hub set, or of the package's conversations."""
    files = _list_files(section)
    asked = (section.question_column, section.answer_column)
    defaults = tuple(DataSection.model_fields[key].default for key in ("question_column", "answer_column"))
    columns = asked if asked != defaults else None
    folder = Path(section.image_dir) if section.image_dir else None

    def read(row: Any) -> list[Conversation]:
        return read_conversations(row, columns)

    if not files:
        return reader.convert(_load_hub(section), read, folder)
    return chain.from_iterable(reader.convert(_number(file), read, folder or file.parent) for file in files)


def _number(file: Path) -> Numbered:
    return ((f"{file}, row {number}", row) for number, row in enumerate(read_rows(file), 1))


def _load_hub(section: DataSection) -> Numbered:
    return ((f"{section.title}, row {number}", row) for number, row in enumerate(_load_table(section), 1))


def _load_table(section: DataSection) -> datasets.Dataset:
    return _load(section.title, section.config, section.split, revision=section.revision)


def _read_training_split(source: DataSection, reader: Reader) -> Iterator[Conversation]:
    """The training rows, without those whose question is in the set's own test split (MAWPS has 26 of them)."""
    name, data_dir = source.title, source.data_dir
    rows = _read_split(name, "train", data_dir, reader, source.image_dir)
    if "test" not in NAMED_SETS[name].files:
        return rows
    test = {row.question for row in _read_split(name, "test", data_dir, Reader(reader.on_bad_row))}
    return (row for row in rows if row.question not in test)


def _read_split(
    name: str, split: Split, data_dir: str | None, reader: Reader, image_dir: str | None = None
) -> Iterator[Conversation]:
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

    folder = image_dir or (find_file(name, split, data_dir).parent if data_dir else None)
    rows = reader.convert(_load_split(name, split, data_dir), read, Path(folder) if folder else None)
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
    paths = candidates(file, data_dir)
    for path in paths:
        if path.is_file():
            return path
    raise MiloraError(f"{paths[0]} does not exist, nor {paths[1]}", "point data_dir at the folder above it")


def _load(path: str, name: str | None = None, split: str = "train", **arguments: Any) -> datasets.Dataset:
    try:
        return datasets.load_dataset(path, name, split=split, **arguments)
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        source = arguments.get("data_files", path)
        near = difflib.get_close_matches(str(source), [EMBEDDED, CONVERSATIONS, *PACKAGED, *NAMED_SETS], n=1)
        raise MiloraError(
            f"data {source!r} cannot be loaded: {' '.join(str(error).split())[:400]}",
            (f"did you mean {near[0]}? Otherwise " if near else "")
            + "check the name, data.config, data.split, and the network, or name a local file or folder of "
            f"{', '.join(FORMATS)}; a set that milora knows (docs/recipes.md) is read from data.data_dir, too",
        ) from error
