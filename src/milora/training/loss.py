"""The cross-entropy of trained tokens; the head of the model, most of whose work is for others, scores no others."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from milora.data.tokens import IGNORED


def loss_of_trained_tokens(
    model: nn.Module, head: nn.Module, inputs: Mapping[str, Tensor], count: Tensor | int | None = None
) -> Tensor:
    """Return −Σ log p(token | those before it) / count, summed over the tokens that have a label.

    The model's own forward computes it, with its scaling and soft-capping of logits, its loss function, and what an
    adapter adds to that. Its `head` (hidden → vocabulary) is given the hidden states before these tokens alone.

    Args:
        model: A causal language model, in a launcher's wrapper or not.
        head: `model.get_output_embeddings()`.
        inputs: What the model takes; `labels` (rows, length) are token ids, and `IGNORED` where nothing is trained.
        count: The number of labels in a whole step; None: those of `inputs`.
    """
    labels = inputs["labels"]
    followed = nn.functional.pad(labels[:, 1:] != IGNORED, (0, 1))
    targets = labels.roll(-1, dims=1)[followed].unsqueeze(0)
    counted = {} if count is None else {"num_items_in_batch": count}
    asked = {**inputs, **counted, "labels": targets, "shift_labels": targets, "use_cache": False}
    with _seeing(head, followed):
        loss: Tensor = model(**asked).loss
    return loss


@contextmanager
def _seeing(head: nn.Module, positions: Tensor) -> Iterator[None]:
    def select(_: nn.Module, hidden: tuple[Tensor]) -> tuple[Tensor]:
        return (hidden[0][positions].unsqueeze(0),)

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
