"""Rows of question and answer → token ids and labels."""

from dataclasses import dataclass
from typing import Literal

import datasets
from transformers import PreTrainedTokenizerBase

from milora.data.templates import Prompt
from milora.data.sets import Row

IGNORED = -100


@dataclass(frozen=True, slots=True)
class TokenReport:
    """What tokenising did: rows and tokens in all, answers cut at the length, rows whose answer had no room at all."""

    rows: int
    tokens: int
    truncated: int
    dropped: int


def tokenize_rows(
    rows: list[Row],
    prompt: Prompt,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    loss_on: Literal["answer", "all"] = "answer",
) -> tuple[datasets.Dataset, TokenReport]:
    """Return `input_ids` and `labels` of each row, prompt then answer then EOS, at most `max_length` tokens.

    With `loss_on="answer"` the labels of the prompt are -100, and a row whose answer is cut away whole is dropped.
    """
    encoded: list[dict[str, list[int]]] = []
    truncated = 0
    for row in rows:
        question_ids = prompt.encode(tokenizer, row["question"])
        ids = question_ids + prompt.encode_answer(tokenizer, row["answer"])
        if len(question_ids) >= max_length and loss_on == "answer":
            continue
        truncated += len(ids) > max_length
        masked = len(question_ids) if loss_on == "answer" else 0
        labels = [IGNORED] * masked + ids[masked:]
        encoded.append({"input_ids": ids[:max_length], "labels": labels[:max_length]})
    tokens = sum(len(row["input_ids"]) for row in encoded)
    report = TokenReport(len(rows), tokens, truncated, len(rows) - len(encoded))
    return datasets.Dataset.from_list(encoded), report
