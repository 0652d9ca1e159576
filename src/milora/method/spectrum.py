"""One weight → the factors of a band of its singular components."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from milora.method.errors import MiloraError

Components = Literal["minor", "principal", "middle", "random"]
Scale = Literal["singular", "orthonormal"]


@dataclass(frozen=True, slots=True)
class Factors:
    """The rank-r band `scaling · B @ A` of a weight `(out, in)`, and the singular values it was made from.

    `B` is `(out, r)`, `A` is `(r, in)`, `singular_values` `(r,)` descending; all float32, or float64 for a
    float64 weight. `largest` is the largest singular value of the whole weight.
    """

    B: Tensor
    A: Tensor
    singular_values: Tensor
    largest: float


def decompose_weight(
    weight: Tensor,
    rank: int,
    *,
    components: Components = "minor",
    scale: Scale = "singular",
    scaling: float = 1.0,
    seed: int = 0,
) -> Factors:
    """Return the factors of `rank` singular components of `weight` (arXiv 2406.09044, section 3).

    With W = U S Vᵀ, singular values descending, and m the chosen components:

        scale="singular":     B = U_m (S_m/s)^½   A = (S_m/s)^½ V_mᵀ   so that  s·B A = U_m S_m V_mᵀ
        scale="orthonormal":  B = U_m             A = V_mᵀ / s         so that  s·B A = U_m V_mᵀ

    Args:
        weight: `(out, in)`, any floating dtype; decomposed in float32, or float64 if it is that already.
        rank: r, at most min(out, in).
        components: the last r ("minor", MiLoRA), the first r ("principal", PiSSA), the r around the middle of the
            spectrum, or r drawn by `seed` without replacement (paper section 5, table 6).
        scale: whether the singular values go into the factors.
        scaling: s, LoRA's alpha / r or alpha / √r.
        seed: of "random" only.

    Signs are canonical: the entry of largest magnitude in each column of U is positive.

    Raises:
        MiloraError: the weight is not a finite matrix, the rank is out of range, or an option is unknown.
    """
    _check(weight, rank, components, scale)
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    U, S, Vh = torch.linalg.svd(weight.detach().to(dtype), full_matrices=False)
    chosen = _choose(components, rank, len(S), seed).to(S.device)
    U, band, Vh = U[:, chosen], S[chosen], Vh[chosen]
    signs = torch.sign(U.gather(0, U.abs().argmax(0, keepdim=True))).squeeze(0)
    U, Vh = U * signs, Vh * signs.unsqueeze(1)
    if scale == "orthonormal":
        return Factors(U, Vh / scaling, band, S[0].item())
    root = (band / scaling).sqrt()
    return Factors(U * root, root.unsqueeze(1) * Vh, band, S[0].item())


def _check(weight: Tensor, rank: int, components: str, scale: str) -> None:
    if components not in get_args(Components):
        raise MiloraError(f"components={components!r} is unknown", f"choose one of {', '.join(get_args(Components))}")
    if scale not in get_args(Scale):
        raise MiloraError(f"scale={scale!r} is unknown", f"choose one of {', '.join(get_args(Scale))}")
    if weight.ndim != 2:
        raise MiloraError(f"a weight must be a matrix, got shape {tuple(weight.shape)}", "pass a 2-D tensor")
    if not 1 <= rank <= min(weight.shape):
        raise MiloraError(
            f"rank {rank} is outside 1 … {min(weight.shape)}, the rank of a {tuple(weight.shape)} weight at most",
            "lower the rank, or set one for this layer with rank_pattern",
        )
    if not torch.isfinite(weight).all():
        raise MiloraError("the weight holds NaN or Inf", "load an intact checkpoint")


def _choose(components: Components, rank: int, total: int, seed: int) -> Tensor:
    """Indices, ascending, of the chosen components among `total` in descending order."""
    match components:
        case "minor":
            return torch.arange(total - rank, total)
        case "principal":
            return torch.arange(rank)
        case "middle":
            first = (total - rank) // 2
            return torch.arange(first, first + rank)
        case "random":
            generator = torch.Generator().manual_seed(seed)
            return torch.randperm(total, generator=generator)[:rank].sort().values
