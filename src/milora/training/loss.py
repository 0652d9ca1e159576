"""The cross-entropy of trained tokens; the head of the model, most of whose work is for others, scores no others."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss

from milora.data.tokens import IGNORED
from milora.method.options import Layout
from milora.models.base import unwrap
from milora.training.attention import lay_out

CHUNKS = nn.LinearCrossEntropyOptions(batch_chunk_size=256, chunking_method=None)
"""Of 64, 128 and 256 tokens at a time, 256 were fastest on a CPU; torch's own choice takes four times as long."""


def loss_of_trained_tokens(
    model: nn.Module,
    head: nn.Module,
    inputs: Mapping[str, Tensor],
    count: Tensor | int | None = None,
    *,
    in_chunks: bool = False,
) -> Tensor:
    """Return −Σ log p(token | those before it) / count, summed over the tokens that have a label.

    The model's own forward computes it, with its scaling and soft-capping of logits, its loss function, and what an
    adapter adds to that. Its `head` (hidden → vocabulary) is given the hidden states before these tokens alone.

    Args:
        model: A causal language model, in a launcher's wrapper or not.
        head: `model.get_output_embeddings()`.
        inputs: What the model takes; `labels` (rows, length) are token ids, and `IGNORED` where nothing is trained.
        count: The number of labels in a whole step; None: those of `inputs`.
        in_chunks: Whether the logits are computed for 256 tokens at a time, where `can_chunk` says so.
    """
    labels = inputs["labels"]
    followed = nn.functional.pad(labels[:, 1:] != IGNORED, (0, 1))
    targets = labels.roll(-1, dims=1)[followed].unsqueeze(0)
    counted = {} if count is None else {"num_items_in_batch": count}
    asked = {**inputs, **counted, "labels": targets, "shift_labels": targets, "use_cache": False}
    with _seeing(head, followed), _chunked(model, cast(nn.Linear, head)) if in_chunks else nullcontext():
        loss: Tensor = model(**asked).loss
    return loss


@torch.no_grad()
def can_chunk(model: nn.Module, head: nn.Module, layout: Layout = "padded") -> bool:
    """Return whether the loss is the cross-entropy of what a float32 head returns, and of nothing else.

    The model is asked, with two tokens in its `layout`: what it does to logits in between, such as capping them, shows
    in what its loss function is given.
    """
    base, seen = unwrap(model), list[Tensor]()
    if type(head) is not nn.Linear or head.weight.dtype != torch.float32 or base.loss_function is not ForCausalLMLoss:
        return False

    def record(logits: Tensor, *_: Any, **__: Any) -> Tensor:
        seen.append(logits)
        return logits.sum()

    handle = head.register_forward_hook(lambda _, __, logits: seen.append(logits))
    try:
        with _with_loss(base, record), torch.random.fork_rng(devices=[]):  # of dropout
            ids = torch.tensor([[2, 3]], device=head.weight.device)
            batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
            model(**lay_out(batch, layout), use_cache=False)
    finally:
        handle.remove()
    return len(seen) == 2 and torch.equal(*seen)


@contextmanager
def _chunked(model: nn.Module, head: nn.Linear) -> Iterator[None]:
    """Let the head return its hidden states, and the loss function multiply them by its weight."""

    def score(
        logits: Tensor, *_: Any, shift_labels: Tensor, num_items_in_batch: Tensor | int | None = None, **__: Any
    ) -> Tensor:
        targets = shift_labels.flatten()
        total = nn.functional.linear_cross_entropy(
            logits.flatten(0, 1), head.weight, targets, linear_bias=head.bias, reduction="sum", options=CHUNKS
        )
        return total / (len(targets) if num_items_in_batch is None else num_items_in_batch)

    head.forward = _unchanged  # type: ignore[method-assign]
    try:
        with _with_loss(unwrap(model), score):
            yield
    finally:
        del head.forward


def _unchanged(input: Tensor) -> Tensor:
    return input


@contextmanager
def _with_loss(base: PreTrainedModel, function: Callable[..., Tensor]) -> Iterator[None]:
    before = base.loss_function
    base.loss_function = function
    try:
        yield
    finally:
        base.loss_function = before


@contextmanager
def _seeing(head: nn.Module, positions: Tensor) -> Iterator[None]:
    def select(_: nn.Module, hidden: tuple[Tensor]) -> tuple[Tensor]:
        return (hidden[0][positions].unsqueeze(0),)

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
