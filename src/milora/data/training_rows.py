"""The rows to train on, and those that are held out: read, left out if too long, divided, weighted, and mixed."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow

from milora.data.conversation import Conversation
from milora.data.division import digest_text, draw_held_out, draw_training, shuffle
from milora.data.rows import Reader, read_training, read_validation
from milora.method.errors import MiloraError
from milora.run.sections import DataSection

CHUNK = 10_000  # conversations held as Python objects at a time

Measure = Callable[[datasets.Dataset], Sequence[int]]


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


@dataclass(frozen=True, slots=True)
class _Table:
    """Rows as `Conversation.to_row` writes them, and a digest of each; `long` were left out for their length."""

    rows: datasets.Dataset
    digests: list[bytes]
    long: int = 0

    def take_short(self, limit: int | None, measure: Measure | None) -> "_Table":
        """Return the rows of at most `limit` tokens."""
        if limit is None or measure is None or not len(self.rows):
            return self
        kept = [index for index, length in enumerate(measure(self.rows)) if length <= limit]
        return _Table(self.rows.select(kept), [self.digests[index] for index in kept], len(self.rows) - len(kept))

    def without(self, pictures: set[str]) -> "_Table":
        """Return the rows that have none of these pictures."""
        if not pictures:
            return self
        kept = [
            index
            for index, messages in enumerate(self.rows["messages"] if len(self.rows) else [])
            if not any(part["image"] in pictures for message in messages for part in message["parts"])
        ]
        return _Table(self.rows.select(kept), [self.digests[index] for index in kept], self.long)


def load_training_rows(section: DataSection, measure: Measure | None = None) -> TrainingRows:
    """Return the rows of a recipe; `measure` counts the tokens of rows, for `data.max_tokens`.

    A set with a validation split of its own gives that. Otherwise `validation_rows` rows of different texts are drawn
    by `data.seed`. Rows to train on that have the text of a held-out row are left out. Then the sources are weighted
    and mixed, and the first `rows` are taken.

    Raises:
        MiloraError: a set or a file does not exist, a row cannot be read, or there are too few rows.
    """
    reader, sources = Reader(section.on_bad_row), section.each_source()

    tables = [_as_table(read_training(source, reader), section.seed) for source in sources]
    validation = read_validation(section, reader)
    held = [] if validation is None else [_as_table(validation, section.seed)]
    bad = reader.find_bad_pictures()
    tables = [table.without(bad).take_short(section.max_tokens, measure) for table in tables]
    own = held[0].without(bad).take_short(section.max_tokens, measure) if held else None
    long = sum(table.long for table in tables) + (own.long if own else 0)
    digests = [table.digests for table in tables]
    _check_count(section, digests, reader, long, held_out=section.validation_rows if own is None else 0)
    rows, found = datasets.concatenate_datasets([table.rows for table in tables]), list(chain.from_iterable(digests))
    if own is None:
        chosen = draw_held_out(found, section.validation_rows)
        held_out, taken = rows.select(chosen), {found[index] for index in chosen}
    else:
        held_out, taken = _take(own.rows, section.validation_rows), set(own.digests[: section.validation_rows])
    drawn = draw_training(digests, section.weights, taken)
    for source, own_digests, indices in zip(sources, digests, drawn, strict=True):
        if own_digests and not indices:
            raise MiloraError(
                f"{source.name}: its weight, or what is held out, leaves none of its {len(own_digests)} rows",
                "raise its weight in data.sources, or leave it out",
            )
    indices = list(chain.from_iterable(drawn))
    train = rows.select(shuffle(indices, section.seed) if section.sources else indices)
    copies = sum(digest in taken for digest in found) - (len(held_out) if own is None else 0)
    return TrainingRows(_take(train, section.rows), held_out, reader.bad, long, copies)


def _check_count(section: DataSection, digests: list[list[bytes]], reader: Reader, long: int, *, held_out: int) -> None:
    dropped = f"; {reader.bad} bad rows were dropped, the first was {reader.first}" if reader.bad else ""
    dropped += f"; {long} have more than data.max_tokens={section.max_tokens} tokens" if long else ""
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


def _as_table(rows: Iterable[Conversation], seed: int) -> _Table:
    part = datasets.Value("string")
    features = datasets.Features(
        messages=[{"role": part, "parts": [{"text": part, "image": part}]}], fields=[{"name": part, "value": part}]
    )
    remaining = iter(rows)
    chunks: list[datasets.Dataset] = []
    digests: list[bytes] = []
    while chunk := [row.to_row() for row in islice(remaining, CHUNK)]:
        digests += [digest_text(_without_folders(row["messages"]), seed) for row in chunk]
        chunks.append(datasets.Dataset(pyarrow.Table.from_pylist(chunk, schema=features.arrow_schema)))
    return _Table(datasets.concatenate_datasets(chunks) if chunks else datasets.Dataset.from_list([]), digests)


def _without_folders(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with the last two parts of each picture's path: which rows are held out must not depend on where."""
    if not any(part["image"] for message in messages for part in message["parts"]):
        return messages

    def shorten(part: dict[str, str]) -> dict[str, str]:
        return {**part, "image": "/".join(Path(part["image"]).parts[-2:])}

    return [{**message, "parts": [shorten(part) for part in message["parts"]]} for message in messages]


def _take(rows: datasets.Dataset, count: int | None) -> datasets.Dataset:
    return rows if count is None else rows.select(range(min(count, len(rows))))
