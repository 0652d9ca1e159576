"""Conversations → token ids and labels, in batches, and in several processes where there are many."""

import os
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Literal

import datasets
import numpy as np
import pyarrow
from transformers import PreTrainedTokenizerBase

from milora.data.conversation import Conversation
from milora.data.templates import Template
from milora.data.turns import Encoded
from milora.method.errors import MiloraError
from milora.run.records import TokenReport

IGNORED = -100  # the label that the loss ignores
PICTURES = "pictures"  # the column of paths, of rows that have some
FORKED_FROM = 20_000  # rows: starting processes takes seconds, as does encoding this many rows
NUMBER, PATHS = datasets.Value("int32"), datasets.List(datasets.Value("string"))
TOKENS = {"input_ids": datasets.List(NUMBER), "labels": datasets.List(NUMBER), "length": NUMBER, "trained": NUMBER}


def tokenize_rows(
    rows: datasets.Dataset,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    loss_on: Literal["answer", "all"] = "answer",
    what: str = "rows",
) -> tuple[datasets.Dataset, TokenReport]:
    """Return `input_ids` and `labels` of each conversation, at most `max_length` tokens, and the paths of its pictures.

    With `loss_on="answer"` the labels outside the assistant's turns are -100, and a row is dropped if every turn of the
    assistant is cut away, or a token in whose place a picture is seen. Errors call the rows `what`.

    Raises:
        MiloraError: every row is dropped, or the template cannot express a row.
    """

    def encode(batch: pyarrow.Table) -> dict[str, Any]:
        conversations = _conversations(batch)
        images = [list(conversation.images) for conversation in conversations]
        seen = template.pictures.tokens if template.pictures and any(images) else frozenset()
        cut = _cut(template.encode_all(tokenizer, conversations), seen, max_length, loss_on)
        return {**cut, PICTURES: images}

    encoded = _map(rows, encode, {**TOKENS, PICTURES: PATHS})
    lengths, trained = encoded["length"][:], encoded["trained"][:]
    kept = [index for index, count in enumerate(trained) if count]
    if not kept:
        raise MiloraError(
            f"all {len(lengths)} {what} are dropped: no answer begins within training.max_length={max_length} tokens; "
            f"with their answers the rows have {min(lengths)} to {max(lengths)} tokens",
            f"set training.max_length={max(lengths)}, which fits all of them",
        )
    report = TokenReport(
        rows=len(encoded),
        tokens=sum(min(lengths[index], max_length) for index in kept),
        trained=sum(trained),
        truncated=sum(lengths[index] > max_length for index in kept),
        dropped=len(encoded) - len(kept),
        longest=max(min(lengths[index], max_length) for index in kept),
    )
    table = encoded if len(kept) == len(encoded) else encoded.select(kept)
    has_pictures = any(table[PICTURES][:])
    return table.remove_columns(["length", "trained", *([] if has_pictures else [PICTURES])]), report


def _cut(
    rows: Sequence[Encoded], seen: frozenset[int], max_length: int, loss_on: Literal["answer", "all"]
) -> dict[str, Any]:
    """Columns of rows cut to `max_length`, and how long they were; rows that lose a token of `seen` train nothing."""
    kept = [Encoded(row.ids[:max_length], row.trained[:max_length]) for row in rows]
    starts = np.cumsum([0, *(len(row.ids) for row in kept)], dtype=np.int32)
    ids = np.fromiter(chain.from_iterable(row.ids for row in kept), np.int32)
    answered = np.fromiter(chain.from_iterable(row.trained for row in kept), np.bool_)
    labels = np.where((answered | (loss_on == "all")) & ~np.isin(ids, list(seen)), ids, IGNORED)
    labels[starts[:-1]] = IGNORED  # nothing predicts the first token; padding on the left would seem to
    trained = np.add.reduceat(labels != IGNORED, starts[:-1], dtype=np.int32)
    return {
        "input_ids": pyarrow.ListArray.from_arrays(starts, ids),
        "labels": pyarrow.ListArray.from_arrays(starts, labels),
        "length": [len(row.ids) for row in rows],
        "trained": np.where([seen.isdisjoint(row.ids[max_length:]) for row in rows], trained, 0),
    }


def count_tokens(rows: datasets.Dataset, template: Template, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return how many tokens each conversation has."""

    def count(batch: pyarrow.Table) -> dict[str, Any]:
        return {"length": [len(row.ids) for row in template.encode_all(tokenizer, _conversations(batch))]}

    lengths: list[int] = _map(rows, count, {"length": NUMBER})["length"][:]
    return lengths


def _conversations(batch: pyarrow.Table) -> list[Conversation]:
    return [Conversation.from_row(row) for row in batch.to_pylist()]


def _map(
    rows: datasets.Dataset, function: Callable[[pyarrow.Table], dict[str, Any]], features: dict[str, Any]
) -> datasets.Dataset:
    columns = datasets.Features(features)
    mapped = rows.with_format("arrow").map(
        lambda batch: pyarrow.table(function(batch), schema=columns.arrow_schema),
        batched=True,
        num_proc=os.cpu_count() if len(rows) >= FORKED_FROM else None,
        remove_columns=rows.column_names,
        features=columns,
        load_from_cache_file=False,
    )
    return mapped.with_format(None)
