"""Conversations → token ids and labels."""

from typing import Any, Literal

import datasets
from transformers import PreTrainedTokenizerBase

from milora.data.conversation import Conversation
from milora.data.templates import Template
from milora.method.errors import MiloraError
from milora.run.records import TokenReport

IGNORED = -100  # the label that the loss ignores


def tokenize_rows(
    rows: datasets.Dataset,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    loss_on: Literal["answer", "all"] = "answer",
    what: str = "rows",
) -> tuple[datasets.Dataset, TokenReport]:
    """Return `input_ids` and `labels` of each conversation, at most `max_length` tokens.

    With `loss_on="answer"` the labels outside the assistant's turns are -100, and a row is dropped if every turn of the
    assistant is cut away. Errors call the rows `what`.

    Raises:
        MiloraError: every row is dropped, or the template cannot express a row.
    """

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        encoded = template.encode(tokenizer, Conversation.from_row(row))
        ids, trained = encoded.ids[:max_length], encoded.trained[:max_length]
        labels = [token if keep or loss_on == "all" else IGNORED for token, keep in zip(ids, trained, strict=True)]
        labels[:1] = [IGNORED]  # nothing predicts the first token; padding on the left would seem to
        return {
            "input_ids": ids,
            "labels": labels,
            "length": len(encoded.ids),
            "trained": sum(label != IGNORED for label in labels),
        }

    encoded = rows.map(encode, remove_columns=rows.column_names, load_from_cache_file=False)
    kept = encoded.filter(lambda trained: trained > 0, input_columns="trained", load_from_cache_file=False)
    if not len(kept):
        lengths = sorted(encoded["length"])
        raise MiloraError(
            f"all {len(lengths)} {what} are dropped: no answer begins within training.max_length={max_length} tokens; "
            f"with their answers the rows have {lengths[0]} to {lengths[-1]} tokens",
            f"set training.max_length={lengths[-1]}, which fits all of them",
        )
    report = TokenReport(
        rows=len(encoded),
        tokens=sum(map(len, kept["input_ids"])),
        trained=sum(kept["trained"]),
        truncated=sum(length > max_length for length in kept["length"]),
        dropped=len(encoded) - len(kept),
    )
    return kept.remove_columns(["length", "trained"]), report
