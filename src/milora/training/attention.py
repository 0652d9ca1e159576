"""Attention over documents that lie end to end in one row, none of which sees another.

All private API of transformers' attention that milora uses is in this file; tests/test_seams.py asserts it.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from milora.method.errors import MiloraError
from milora.method.options import Layout
from milora.method.variant.weights import is_quantized
from milora.models.base import unwrap
from milora.training.packing import Batch, lay_end_to_end

BY_DOCUMENT = "milora_by_document"
# What an attention layer passes on if it is more than softmax(s·Q Kᵀ) V under a causal mask.
MORE_THAN_CAUSAL = ("softcap", "s_aux", "position_bias", "cache")


class NotPackedError(MiloraError):
    """The model's attention cannot be computed by document."""


def attend_by_document(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int = 0,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return causal attention within each document, `(1, tokens, heads, head)`, in transformers' own interface.

    Args:
        query: `(1, heads, tokens, head)`; `key` and `value` may have fewer heads.
        cu_seq_lens_q: the first token of each document, and the number of tokens, `(documents + 1,)`.
        max_length_q: the tokens of the longest document.
        sliding_window: allowed if no document is longer.

    Raises:
        NotPackedError: the model does not pass `cu_seq_lens_q` on, or its attention is not plainly causal.
    """
    more = [name for name in MORE_THAN_CAUSAL if options.get(name) is not None]
    if cu_seq_lens_q is None or attention_mask is not None or more:
        raise NotPackedError("this model's attention cannot be computed by document", "set training.packing=false")
    if sliding_window is not None and sliding_window < max_length_q:
        raise NotPackedError(
            f"a row of {max_length_q} tokens is longer than the model's sliding window of {sliding_window}",
            "set training.packing=false",
        )
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        return _attend_on_gpu(query, key, value, cu_seq_lens_q, max_length_q, options.get("scaling")), None
    lengths = cu_seq_lens_q.diff().tolist()
    # Split, not sliced: the gradient of a slice is as large as the whole.
    documents = zip(*(torch.split(states, lengths, 2) for states in (query, key, value)), strict=True)
    options["is_causal"] = True
    parts = [sdpa_attention_forward(module, q, k, v, None, **options)[0] for q, k, v in documents]
    return torch.cat(parts, dim=1), None


def _attend_on_gpu(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, longest: int, scaling: float | None
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # of newer releases of torch

    q, k, v = (states.squeeze(0).transpose(0, 1) for states in (query, key, value))
    attended = varlen_attn(
        q,
        k,
        v,
        starts,
        starts,
        longest,
        longest,
        scale=scaling,
        window_size=(-1, 0),  # causal
        enable_gqa=q.shape[1] != k.shape[1],
    )
    assert isinstance(attended, Tensor)
    return attended.unsqueeze(0)


def lay_out(batch: Batch, layout: Layout) -> dict[str, Any]:
    """Return what a model is given for a batch of padded rows."""
    if layout == "padded":
        return dict(batch)
    packed, starts = lay_end_to_end(batch)
    if layout == "mask":  # which transformers builds from the positions
        return dict(packed)
    longest = int(starts.diff().max())
    return {
        **packed,
        "cu_seq_lens_q": starts,
        "cu_seq_lens_k": starts,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def choose_layout(model: nn.Module, longest: int) -> Layout:
    """Return the best layout for rows of at most `longest` tokens on this model, and set its attention accordingly.

    The config says where attention is more than causal. For the rest the model is asked: two made documents are scored
    alone, and then end to end, which must not change the second one's logits.
    """
    base = unwrap(model)
    parameters = inspect.signature(base.forward).parameters
    if "position_ids" not in parameters:
        return "padded"
    before = base.config._attn_implementation
    takes_more = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values())
    if before == "sdpa" and takes_more and _is_plainly_causal(base.config, longest):
        AttentionInterface.register(BY_DOCUMENT, attend_by_document)
        base.set_attn_implementation(BY_DOCUMENT)
        if _keeps_apart(model, "documents"):
            return "documents"
        base.set_attn_implementation(before)
    return "mask" if _keeps_apart(model, "mask") else "padded"


def _is_plainly_causal(config: PretrainedConfig, longest: int) -> bool:
    """Return whether every attention layer lets a token see all of its document before it."""
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
    kinds = {"full_attention", "sliding_attention"}
    return set(getattr(text, "layer_types", None) or kinds) <= kinds and (window is None or longest <= window)


@torch.no_grad()
def _keeps_apart(model: nn.Module, layout: Layout) -> bool:
    """Return whether a document has the logits that it has alone, compared with what an earlier one does to them."""
    first, second = torch.arange(2, 8), torch.arange(2, 11).flip(0)
    with _without_dropout(model):
        alone = _score(model, [second], layout)
        try:
            apart = _score(model, [first, second], layout)
            together = _score(model, [torch.cat([first, second])], layout)
        except NotPackedError:
            return False
    tail = slice(-len(second), None)
    changed, mixed = (float(torch.linalg.norm(scores[:, tail] - alone)) for scores in (apart, together))
    return changed <= 0.1 * mixed


def _score(model: nn.Module, documents: Sequence[Tensor], layout: Layout) -> Tensor:
    device = next(model.parameters()).device
    ids = nn.utils.rnn.pad_sequence(list(documents), batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(document) for document in documents], batch_first=True)
    batch = {"input_ids": ids.to(device), "attention_mask": mask.to(device), "labels": ids.to(device)}
    asked = lay_out(batch, layout)
    del asked["labels"]
    logits: Tensor = model(**asked, use_cache=False).logits
    return logits.float()


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    training = {module: module.training for module in model.modules()}
    for module in training:
        # On a CPU, bitsandbytes repacks a 4-bit weight at its first forward pass in eval mode, for good.
        weight = getattr(module, "weight", None)
        if not (isinstance(weight, nn.Parameter) and is_quantized(weight)):
            module.training = False
    try:
        yield
    finally:
        for module, was_training in training.items():
            module.training = was_training
