"""Products with a large matrix, in the layouts that are fast in BLAS libraries."""

import torch
from torch import Tensor

PANEL = 256


def multiply(W: Tensor, X: Tensor) -> Tensor:
    """Return W X for a W (m, n) and an X (n, k) with few columns, in the precision of X, computed as (Xᵀ Wᵀ)ᵀ.

    In float64, MKL multiplies a thin matrix from the left 2 to 4 times faster than from the right; no case is slower.
    """
    left = X.T.contiguous()
    if W.dtype == X.dtype:
        return (left @ W.T).T
    # A contiguous panel is converted while it is in the cache: as fast as a float64 copy of W, without its memory and
    # conversion time.
    by_rows = W.stride(1) == 1
    lines = W if by_rows else W.T
    buffer = left.new_empty(PANEL, lines.shape[1])
    product = left.new_zeros(len(left), len(W))
    for first in range(0, len(lines), PANEL):
        panel = lines[first : first + PANEL]
        converted = buffer[: len(panel)].copy_(panel)
        if by_rows:
            torch.mm(left, converted.T, out=product[:, first : first + PANEL])
        else:
            product.addmm_(left[:, first : first + PANEL], converted)
    return product.T


def multiply_gram(W: Tensor, X: Tensor) -> Tensor:
    """Return WᵀW X for an X (n, k) with few columns, in the precision of X."""
    if not W.is_cpu or W.stride(1) != 1:
        return multiply(W.T, multiply(W, X))
    # Both products use a panel while it is in the cache: W is read from memory once.
    left = X.T.contiguous()
    product = torch.zeros_like(left)
    for first in range(0, len(W), PANEL):
        panel = W[first : first + PANEL].to(X.dtype)
        product.addmm_(left @ panel.T, panel)
    return product.T


def gram_lower(weight: Tensor) -> Tensor:
    """Return WᵀW (n, n) with only the lower triangle valid: nearly half the work of the full product."""
    gram = weight.new_zeros(weight.shape[1], weight.shape[1])
    # On processors other than Intel's, oneDNN's float32 product uses AVX-512, and MKL's does not.
    onednn = weight.is_cpu and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    columns = weight.T.contiguous() if onednn else weight.T
    for first in range(0, len(columns), PANEL):
        panel, left = columns[first : first + PANEL], columns[: first + PANEL]
        rows = torch.nn.functional.linear(panel.to_mkldnn(), left).to_dense() if onednn else panel @ left.T
        gram[first : first + PANEL, : first + PANEL] = rows
    return gram
