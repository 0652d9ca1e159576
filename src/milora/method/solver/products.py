"""Products with a large matrix, in the form in which a processor's library is fast."""

import torch
from torch import Tensor

PANELS = 4


def multiply(W: Tensor, X: Tensor) -> Tensor:
    """W X for a W (m, n) and an X (n, k) of few columns, as (Xᵀ Wᵀ)ᵀ.

    MKL's double precision takes a thin factor on the left 2 to 4 times faster than on the right; nothing is slower.
    """
    return (X.T.contiguous() @ W.T).T


def gram_lower(weight: Tensor) -> Tensor:
    """WᵀW (n, n), of which only the lower triangle may be read: nearly half the work of the product."""
    gram = weight.new_zeros(weight.shape[1], weight.shape[1])
    panels = weight.chunk(PANELS, dim=1)
    # oneDNN's float32 product uses AVX-512 where MKL's, on a processor that is not Intel's, does not.
    onednn = weight.is_cpu and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if onednn:
        panels = tuple(panel.T.contiguous().to_mkldnn() for panel in panels)
    for i, rows in enumerate(gram.chunk(PANELS)):
        for block, panel in zip(rows.chunk(PANELS, dim=1)[: i + 1], panels, strict=False):
            if onednn:
                block.copy_(torch.nn.functional.linear(panels[i], panel).to_dense())
            else:
                torch.mm(panels[i].T, panel, out=block)
    return gram
