"""Solvers that compute the whole spectrum and keep a band of it."""

import torch
from torch import Tensor

from milora.method.solver.certificate import Band
from milora.method.solver.products import gram_lower


def exact_band(W: Tensor, selected: Tensor) -> Band:
    """Return the components at the indices `selected` of the full singular value decomposition of `W` (m, n)."""
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    part = _as_slice(selected)
    return Band(U[:, part], S[part], Vh[part].T, S[0].item(), _beyond(S, part))


def gram_bands(W: Tensor, selected: Tensor) -> list[Band]:
    """Return the same band of each matrix of a tall float64 `W` (E, m, n), from the eigenvectors V of WᵀW.

    U S = W V follows for the band alone. The Gram matrix squares the condition number, so that values below about
    1e-7 σ_max are inaccurate; those are computed again from W.
    """
    values, vectors = torch.linalg.eigh(torch.stack([gram_lower(one) for one in W]))
    spectra = values.flip(1).clamp(min=0).sqrt()
    part = _as_slice(selected)
    return [_gram_band(*one, part) for one in zip(W, spectra, vectors.flip(2)[:, :, part], strict=True)]


def _gram_band(W: Tensor, spectrum: Tensor, V: Tensor, part: Tensor | slice) -> Band:
    image = W @ V
    S = image.norm(dim=0)
    if S.min() > 1e-4 * spectrum[0]:
        U = image / S
    else:
        U, S, rotation = torch.linalg.svd(image, full_matrices=False)
        V = V @ rotation.T
    return Band(U, S, V, spectrum[0].item(), _beyond(spectrum, part))


def _as_slice(selected: Tensor) -> Tensor | slice:
    """Return consecutive indices as a slice, so that nothing is copied."""
    first, last = int(selected[0]), int(selected[-1])
    return slice(first, last + 1) if last - first + 1 == len(selected) else selected


def _beyond(spectrum: Tensor, part: Tensor | slice) -> float | None:
    """Return the singular value next to a band at either end of the descending `spectrum`; None for other bands."""
    total = len(spectrum)
    if not isinstance(part, slice) or part.stop - part.start == total:
        return None
    if part.stop == total:
        return spectrum[part.start - 1].item()
    return spectrum[part.stop].item() if part.start == 0 else None
