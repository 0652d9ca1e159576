"""Conversations → token ids and labels, in batches, and in several processes where there are many."""

import os
from collections.abc import Callable, Mapping
from typing import Any, Literal

import datasets
from transformers import PreTrainedTokenizerBase

from milora.data.conversation import Conversation
from milora.data.templates import Template
from milora.method.errors import MiloraError
from milora.run.records import TokenReport

IGNORED = -100  # the label that the loss ignores
PICTURES = "pictures"  # the column of paths, of rows that have some
FORKED_FROM = 20_000  # rows: starting processes takes seconds, as does encoding this many rows
NUMBER = datasets.Value("int32")

Columns = Mapping[str, list[Any]]


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

    def encode(batch: Columns) -> dict[str, list[Any]]:
        ids, labels, lengths, trained, images = [], [], [], [], []
        conversations = _conversations(batch)
        for row, conversation in zip(template.encode_all(tokenizer, conversations), conversations, strict=True):
            seen = template.pictures.tokens if template.pictures and conversation.images else frozenset()
            pairs = zip(row.ids[:max_length], row.trained[:max_length], strict=True)
            own = [token if (keep or loss_on == "all") and token not in seen else IGNORED for token, keep in pairs]
            own[:1] = [IGNORED]  # nothing predicts the first token; padding on the left would seem to
            is_cut = not seen.isdisjoint(row.ids[max_length:])
            ids.append(row.ids[:max_length])
            labels.append(own)
            lengths.append(len(row.ids))
            trained.append(0 if is_cut else len(own) - own.count(IGNORED))
            images.append(list(conversation.images))
        return {"input_ids": ids, "labels": labels, "length": lengths, "trained": trained, PICTURES: images}

    tokens = datasets.List(NUMBER)
    features = {"input_ids": tokens, "labels": tokens, "length": NUMBER, "trained": NUMBER}
    encoded = _map(rows, encode, {**features, PICTURES: datasets.List(datasets.Value("string"))})
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
    has_pictures = any(map(len, table[PICTURES]))
    return table.remove_columns(["length", "trained", *([] if has_pictures else [PICTURES])]), report


def count_tokens(rows: datasets.Dataset, template: Template, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return how many tokens each conversation has."""

    def count(batch: Columns) -> dict[str, list[Any]]:
        return {"length": [len(row.ids) for row in template.encode_all(tokenizer, _conversations(batch))]}

    lengths: list[int] = _map(rows, count, {"length": NUMBER})["length"][:]
    return lengths


def _conversations(batch: Columns) -> list[Conversation]:
    return [
        Conversation.from_row({"messages": messages, "fields": fields})
        for messages, fields in zip(batch["messages"], batch["fields"], strict=True)
    ]


def _map(
    rows: datasets.Dataset, function: Callable[[Columns], dict[str, list[Any]]], features: dict[str, Any]
) -> datasets.Dataset:
    return rows.map(
        function,
        batched=True,
        num_proc=os.cpu_count() if len(rows) >= FORKED_FROM else None,
        remove_columns=rows.column_names,
        features=datasets.Features(features),
        load_from_cache_file=False,
    )
