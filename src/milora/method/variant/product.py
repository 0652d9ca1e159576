"""A layer's output with its update, and the gradients, in as few products and kernels as that takes."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from milora.method.errors import MiloraError


def add_update(result: Tensor, x: Tensor, A: Tensor, B: Tensor, A0: Tensor, B0: Tensor, scaling: float) -> Tensor:
    """Return result + s·x [A; A − A₀]ᵀ [B − B₀, B₀]ᵀ; gradients flow to `result`, `x`, A and B.

    The differences are taken in the factors' dtype and then rounded to that of the products: autocast's, or the
    factors' own. With h = x [A; A − A₀]ᵀ, and g the gradient of the returned tensor,

        ∂B = s·gᵀ h[:, :r]        ∂A = s·(g [B − B₀] + g B₀)ᵀ x

    so that a factor's gradient takes one product of width r, as an ordinary LoRA's does.

    Args:
        result: the output of the base layer, `(…, out)`.
        x: the input, `(…, in)`, after dropout.
        A, A0: `(r, in)`.
        B, B0: `(out, r)`.
        scaling: s.

    Raises:
        MiloraError: the trained factors have another rank than those that they started from, as after a hot swap.
    """
    if A.shape != A0.shape or B.shape != B0.shape:  # some shapes would broadcast
        raise MiloraError(
            f"factors of rank {len(A)} were loaded over a MiLoRA adapter of rank {len(A0)}",
            "load them under another adapter name",
        )
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else A.dtype
    rows = x.to(dtype).flatten(0, -2)
    # Shaped outside of the function: a view from inside could not be changed in place, as some models do.
    total: Tensor = _AddUpdate.apply(  # type: ignore[no-untyped-call]
        result.flatten(0, -2), rows, A, B, A0, B0, scaling
    )
    return total.view_as(result)


class _AddUpdate(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, result: Tensor, rows: Tensor, A: Tensor, B: Tensor, A0: Tensor, B0: Tensor, scaling: float
    ) -> Tensor:
        rank = len(A)
        down, up = rows.new_empty(2 * rank, A.shape[1]), rows.new_empty(len(B), 2 * rank)
        down[:rank], up[:, rank:] = A, B0
        torch.sub(A, A0, out=down[rank:])
        torch.sub(B, B0, out=up[:, :rank])
        hidden = rows @ down.T
        context.save_for_backward(rows, hidden[:, :rank], down, up)
        context.scaling, context.dtype = scaling, A.dtype
        if result.dtype != rows.dtype:
            return result + (hidden @ up.T).mul_(scaling)
        return torch.addmm(result, hidden, up.T, alpha=scaling)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, hidden, down, up = context.saved_tensors
        rank, needs = hidden.shape[1], context.needs_input_grad
        g = gradient.to(rows.dtype)
        of_hidden = (g @ up).mul_(context.scaling)
        of_rows = of_hidden @ down if needs[1] else None
        of_A = (of_hidden[:, :rank] + of_hidden[:, rank:]).T @ rows if needs[2] else None
        of_B = (g.T @ hidden).mul_(context.scaling) if needs[3] else None
        of_A, of_B = (each if each is None else each.to(context.dtype) for each in (of_A, of_B))
        return gradient if needs[0] else None, of_rows, of_A, of_B, None, None, None
