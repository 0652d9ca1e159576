"""Solvers that find the whole spectrum and keep a band of it."""

import torch
from torch import Tensor

from milora.method.solver.certificate import Band
from milora.method.solver.products import gram_lower


def exact_band(W: Tensor, chosen: Tensor) -> Band:
    """The singular components at the indices `chosen` of the full singular value decomposition of `W` (m, n)."""
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    part = _run(chosen)
    return Band(U[:, part], S[part], Vh[part].T, S[0].item(), _beyond(S, part))


def gram_band(W: Tensor, chosen: Tensor) -> Band:
    """The same for a tall float64 `W` from the eigenvectors V of WᵀW in float64, and U S = W V for the band alone.

    The Gram matrix squares the condition, so that values below about 1e-7 σ_max are blurred; those are sorted out on W.
    """
    values, vectors = torch.linalg.eigh(gram_lower(W))
    spectrum = values.flip(0).clamp(min=0).sqrt()
    part = _run(chosen)
    V = vectors.flip(1)[:, part]
    image = W @ V
    S = image.norm(dim=0)
    if S.min() > 1e-4 * spectrum[0]:
        U = image / S
    else:
        U, S, rotation = torch.linalg.svd(image, full_matrices=False)
        V = V @ rotation.T
    return Band(U, S, V, spectrum[0].item(), _beyond(spectrum, part))


def _run(chosen: Tensor) -> Tensor | slice:
    """Indices that follow one another as a slice: then nothing is copied."""
    first, last = int(chosen[0]), int(chosen[-1])
    return slice(first, last + 1) if last - first + 1 == len(chosen) else chosen


def _beyond(spectrum: Tensor, part: Tensor | slice) -> float | None:
    """The singular value next to a band at either end of the descending `spectrum`; None for any other band."""
    total = len(spectrum)
    if not isinstance(part, slice) or part.stop - part.start == total:
        return None
    if part.stop == total:
        return spectrum[part.start - 1].item()
    return spectrum[part.stop].item() if part.start == 0 else None
