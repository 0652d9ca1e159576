"""Conversations → token ids and labels."""

from typing import Any, Literal

import datasets
from transformers import PreTrainedTokenizerBase

from milora.data.conversation import Conversation
from milora.data.templates import Template
from milora.run.records import TokenReport

IGNORED = -100  # the label that the loss ignores


def tokenize_rows(
    rows: datasets.Dataset,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    loss_on: Literal["answer", "all"] = "answer",
) -> tuple[datasets.Dataset, TokenReport]:
    """Return `input_ids` and `labels` of each conversation, at most `max_length` tokens.

    With `loss_on="answer"` the labels outside the assistant's turns are -100, and a row is dropped if every turn of the
    assistant is cut away.
    """

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        encoded = template.encode(tokenizer, Conversation.from_row(row))
        ids, trained = encoded.ids[:max_length], encoded.trained[:max_length]
        labels = [token if keep or loss_on == "all" else IGNORED for token, keep in zip(ids, trained, strict=True)]
        return {"input_ids": ids, "labels": labels, "is_cut": len(encoded.ids) > max_length}

    encoded = rows.map(encode, remove_columns=rows.column_names, load_from_cache_file=False)
    kept = encoded.filter(lambda labels: any(label != IGNORED for label in labels), input_columns="labels")
    report = TokenReport(
        rows=len(encoded),
        tokens=sum(map(len, kept["input_ids"])),
        truncated=sum(kept["is_cut"]),
        dropped=len(encoded) - len(kept),
    )
    return kept.remove_columns("is_cut"), report
