"""Rows laid end to end: a forward pass without padding, over micro-batches that hold about equally many tokens."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from milora.data.tokens import IGNORED

Batch = dict[str, Tensor]


def divide_rows(batch: Mapping[str, Tensor], rows: Sequence[Sequence[int]]) -> list[Batch]:
    """Return one micro-batch for each group of row numbers, padded no further than its longest row."""
    lengths = row_lengths(batch)
    parts = []
    for group in rows:
        part = {name: tensor[list(group)] for name, tensor in batch.items()}
        longest, is_left = max(lengths[row] for row in group), not bool(part["attention_mask"][:, 0].all())
        parts.append({name: _trim(tensor, longest, is_left) for name, tensor in part.items()})
    return parts


def _trim(tensor: Tensor, length: int, is_left: bool) -> Tensor:
    return tensor[:, -length:] if is_left else tensor[:, :length]


def row_lengths(batch: Mapping[str, Tensor]) -> list[int]:
    """Return the tokens of each row, without padding."""
    lengths: list[int] = batch["attention_mask"].sum(1).tolist()
    return lengths


def count_passes(lengths: Sequence[int], capacity: int) -> int:
    """Return how many passes rows need if each contains at most `capacity` tokens, as `balance_rows` divides them.

    For n rows of at most L tokens and a capacity of m L, that is at most ⌈n / m⌉: where a row does not fit, there is
    more than (m − 1) L in every pass, hence m rows.
    """
    passes = range(1, len(lengths) + 1)
    return next(count for count in passes if _largest(lengths, balance_rows(lengths, count)) <= capacity)


def balance_rows(lengths: Sequence[int], passes: int) -> list[list[int]]:
    """Return the row numbers of each pass: the longest row first, each to the pass with the fewest tokens."""
    groups: list[list[int]] = [[] for _ in range(passes)]
    tokens = [0] * passes
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        emptiest = tokens.index(min(tokens))
        groups[emptiest].append(row)
        tokens[emptiest] += lengths[row]
    return [sorted(group) for group in groups]


def _largest(lengths: Sequence[int], groups: Sequence[Sequence[int]]) -> int:
    return max(sum(lengths[row] for row in group) for group in groups)


def lay_end_to_end(batch: Mapping[str, Tensor]) -> tuple[Batch, Tensor]:
    """Return padded rows as one row without padding, `(1, tokens)`, and where each begins.

    That is the first token of each document and then the number of tokens, `(documents + 1,)`.

    `position_ids` restart at each document, and there is no `attention_mask`: with an all-ones mask, transformers would
    let every document attend to those before it. A document's first token has no label: nothing predicts it.
    """
    kept = batch["attention_mask"].bool()
    lengths = kept.sum(1)
    starts = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    labels = batch["labels"][kept]
    labels[starts[:-1]] = IGNORED
    positions = (kept.cumsum(1) - 1)[kept]
    packed = {"input_ids": batch["input_ids"][kept], "labels": labels, "position_ids": positions}
    return {name: tensor.unsqueeze(0) for name, tensor in packed.items()}, starts
