"""Batches with pictures: grouped by modality, and decoded group by group when a batch is made."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase

from milora.data.processor import Pictures
from milora.data.tokens import PICTURES

Batch = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PictureCollator:
    """Rows → padded tokens, and what the model is given for the pictures of each group of `size` rows.

    A forward pass takes one group: `take_group` puts its pictures beside its tokens.
    """

    tokenizer: PreTrainedTokenizerBase
    pictures: Pictures
    size: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Batch:
        tokens = [{name: row[name] for name in ("input_ids", "labels")} for row in rows]
        batch: Batch = dict(DataCollatorForSeq2Seq(self.tokenizer)(tokens))
        marks = self.pictures.mark(batch["input_ids"].tolist())
        batch |= {name: torch.tensor(values) for name, values in marks.items()}
        groups = [rows[start : start + self.size] for start in range(0, len(rows), self.size)]
        batch[PICTURES] = [self._read(group) for group in groups]
        return batch

    def _read(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        paths = [path for row in rows for path in row.get(PICTURES, ())]  # held-out rows may have none
        return self.pictures.read(paths) if paths else {}

    def whole(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return the rows as one group, as a model takes them."""
        return take_group(PictureCollator(self.tokenizer, self.pictures, len(rows))(rows))


def take_group(batch: Batch) -> dict[str, Any]:
    """Return a batch of one group with its pictures beside its tokens."""
    (group,) = batch.get(PICTURES, [{}])
    inputs = {name: value for name, value in batch.items() if name != PICTURES}
    inputs |= group
    return inputs


def forward_epochs(loader: Any) -> Any:
    """Return accelerate's loader of batches, which then tells a `ModalitySampler` each epoch.

    In an epoch that several processes resume, it looks for a sampler beside a process's share of the batches alone.
    """
    batches = getattr(loader.batch_sampler, "batch_sampler", loader.batch_sampler)
    if isinstance(batches.sampler, ModalitySampler):
        loader.set_sampler(batches.sampler)
    return loader


class ModalitySampler(Sampler[int]):
    """Rows in an order drawn anew in each epoch, in which the rows of a batch all have pictures, or all have none.

    What fills no batch comes last: rows with pictures, then rows without.
    """

    def __init__(self, has_pictures: Sequence[bool], batch_size: int, seed: int) -> None:
        self.has_pictures, self.batch_size, self.seed, self.epoch = has_pictures, batch_size, seed, 0

    def __len__(self) -> int:
        return len(self.has_pictures)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        draw = random.Random(f"{self.seed} {self.epoch}")
        batches: list[list[int]] = []
        rest: list[int] = []
        for kind in (True, False):
            rows = [index for index, has in enumerate(self.has_pictures) if has == kind]
            draw.shuffle(rows)
            whole = len(rows) - len(rows) % self.batch_size
            batches += [rows[start : start + self.batch_size] for start in range(0, whole, self.batch_size)]
            rest += rows[whole:]
        draw.shuffle(batches)
        return iter([index for batch in [*batches, rest] for index in batch])
