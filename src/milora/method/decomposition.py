"""Decomposes one weight into the factors of a band of its singular components."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from milora.method.errors import MiloraError
from milora.method.options import Band as NamedBand
from milora.method.options import Components, Solver, Weighting
from milora.method.solver.certificate import Band, Certificate, certify, objection
from milora.method.solver.direct import exact_band, gram_bands
from milora.method.solver.lanczos import has_room, lanczos_bands

HAVE_FLOAT64 = ("cpu", "cuda")
"""Devices that certainly compute in float64; Apple's GPUs do not. The weights of others are decomposed on the CPU."""


@dataclass(frozen=True, slots=True)
class Factors:
    """The rank-r band `scaling · B @ A` of a weight `(out, in)`, and its singular values.

    Attributes:
        B: `(out, r)`, float32, or float64 for a float64 weight.
        A: `(r, in)`, in the same dtype.
        singular_values: `(r,)`, descending, in the same dtype.
        largest: the largest singular value of the whole weight, within 1 %.
        certificate: how the band was found and how accurate it is; None for factors that were loaded.
    """

    B: Tensor
    A: Tensor
    singular_values: Tensor
    largest: float
    certificate: Certificate | None = None


def decompose_weight(
    weight: Tensor,
    rank: int,
    *,
    components: Components = "minor",
    weighting: Weighting = "singular",
    scaling: float = 1.0,
    solver: Solver = "auto",
    seed: int = 0,
) -> Factors:
    """Return the factors of `rank` singular components of `weight` (arXiv 2406.09044, section 3).

    With W = U S Vᵀ, singular values descending, and m the selected components:

        weighting="singular":     B = U_m (S_m/s)^½   A = (S_m/s)^½ V_mᵀ   so that  s·B A = U_m S_m V_mᵀ
        weighting="orthonormal":  B = U_m             A = V_mᵀ / s         so that  s·B A = U_m V_mᵀ

    Args:
        weight: `(out, in)`, any floating dtype. The precision is that of float32, or of float64 for a float64 weight.
        rank: r, at most min(out, in).
        components: the last r ("minor", MiLoRA), the first r ("principal", PiSSA), the r around the middle of the
            spectrum, or r drawn without replacement (paper section 5, table 6). A number is the position of r
            consecutive ones: 0 has the first r, 1 the last r, and p those from round(p·(k − r)) on of all k.
        weighting: whether the factors include the singular values.
        scaling: s, LoRA's alpha / r or alpha / √r.
        solver: "lanczos" (block Lanczos, either end of the spectrum), "gram" (eigenvectors of WᵀW), "exact" (full
            SVD), or the fastest of them ("auto"). A result that fails its certificate is replaced by the exact one.
        seed: the seed of "random" components and of the starting block of "lanczos".

    Signs are canonical: the entry of largest magnitude in each column of U is positive.

    Raises:
        MiloraError: the weight is not a finite matrix, the rank or the scaling is out of range, an option is unknown
            or conflicts with another, or the exact decomposition fails its certificate too.
    """
    _check(weight, rank, components, weighting, solver, scaling)
    band, certificate = _certified_band(_tall(weight), rank, components, solver, seed)
    return _factors(weight, band, certificate, weighting, scaling)


def decompose_stack(
    weights: Sequence[Tensor],
    rank: int,
    *,
    components: Components = "minor",
    weighting: Weighting = "singular",
    scaling: float = 1.0,
    seed: int = 0,
) -> list[Factors]:
    """Return the factors of matrices of one shape, as `decompose_weight` does, from eigenvectors found together.

    Raises:
        MiloraError: see `decompose_weight`.
    """
    for weight in weights:
        _check(weight, rank, components, weighting, "gram", scaling)
    matrices = [_tall(weight) for weight in weights]
    selected = _select(components, rank, min(weights[0].shape), seed).to(matrices[0].device)
    try:
        bands: list[Band | None] = [*gram_bands(torch.stack(matrices).double(), selected)]
    except (torch.OutOfMemoryError, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
        bands = [None] * len(matrices)
    found = [
        _certified_band(W, rank, components, "gram", seed, first=band) for W, band in zip(matrices, bands, strict=True)
    ]
    return [_factors(weight, *one, weighting, scaling) for weight, one in zip(weights, found, strict=True)]


def count_together(shape: tuple[int, int], stored: Tensor, rank: int, components: Components) -> int:
    """Return how many matrices of a layer to pass to `decompose_stack` at a time; 1 where that is not faster.

    A GPU waits for each kernel of a small matrix to be launched: 16 of 768 × 2048 took 0.12 s together and 0.55 s one
    by one on an H200. A core does not wait.
    """
    is_small = min(shape) <= 1024 and _method(shape, stored.dtype, rank, components, "auto") != "exact"
    return 16 if stored.is_cuda and is_small else 1


def _tall(weight: Tensor) -> Tensor:
    """The weight or its transpose, which has no fewer rows than columns, in the precision and on a device to solve."""
    W = weight.detach().to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
    if W.device.type not in HAVE_FLOAT64:
        W = W.cpu()
    return W if W.shape[0] >= W.shape[1] else W.T


def _factors(weight: Tensor, band: Band, certificate: Certificate, weighting: Weighting, scaling: float) -> Factors:
    U, V = (band.U, band.V) if weight.shape[0] >= weight.shape[1] else (band.V, band.U)
    signs = torch.sign(U.gather(0, U.abs().argmax(0, keepdim=True))).squeeze(0)
    root = (band.S / scaling).sqrt()
    left, right = (root, root) if weighting == "singular" else (1.0, 1 / scaling)
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    B, A, S = (X.to(weight.device, dtype) for X in (U * (signs * left), (V * (signs * right)).T, band.S))
    return Factors(B, A, S, band.largest, certificate)


def _certified_band(
    W: Tensor,
    rank: int,
    components: Components,
    solver: Solver,
    seed: int,
    reasons: tuple[str, ...] = (),
    *,
    first: Band | None = None,
) -> tuple[Band, Certificate]:
    """Return the band of a tall `W` by the first method that passes: the requested one, exact ones, then the CPU.

    `first` is the requested method's band, if it has been found.
    """
    requested = _method(W.shape, W.dtype, rank, components, solver)
    for method in dict.fromkeys([requested, "exact", "exact float64"]):
        reason = f"{method}: no candidate"
        try:
            # On a GPU, float64 costs little, and float32 may be TF32 without notice.
            precise = W if W.is_cpu else W.double()
            known = [first] if first and method == requested else None
            for band in known or _bands(method, precise, rank, components, seed):
                certificate = certify(precise, band, method, fallback="; ".join(reasons))
                # A float64 result must meet the rounding of W itself; LAPACK in W's own precision, LAPACK's bound.
                noise = torch.finfo(W.dtype).eps * (8 if band.S.dtype != W.dtype else 4 * len(W) ** 0.5)
                reason = objection(certificate, band, components, noise)
                if not reason:
                    return band, certificate
        except (torch.OutOfMemoryError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
            reason = f"{method} on {W.device}: {error}"
            if not W.is_cpu:
                return _certified_band(W.cpu(), rank, components, solver, seed, (*reasons, reason))
        reasons += (reason,)
    raise MiloraError(f"no decomposition passed its certificate: {'; '.join(reasons)}", "please report this weight")


def _bands(method: str, W: Tensor, rank: int, components: Components, seed: int) -> Iterable[Band]:
    """Return the candidates of `method` for a tall `W`."""
    if method == "lanczos":
        return lanczos_bands(W, rank, components, seed) if has_room(rank, W.shape[1]) else []
    selected = _select(components, rank, W.shape[1], seed).to(W.device)
    if method == "gram":
        return gram_bands(W.double()[None], selected)
    return [exact_band(W if method == "exact" else W.double(), selected)]


def _method(shape: tuple[int, ...], dtype: torch.dtype, rank: int, components: Components, solver: Solver) -> str:
    """Return the requested method, or the fastest one that is expected to pass."""
    if solver != "auto":
        return solver
    n, m = sorted(shape)
    if dtype == torch.float64 or n < 64:
        return "exact"
    # For a nearly square weight, eigh in float64 takes as long as the full SVD in float32.
    direct = "gram" if m > n + n // 4 else "exact"
    # Above these fractions of the columns, the direct method was measured to be faster, at both ends of the spectrum.
    smaller, larger = (12, 8) if direct == "gram" else (9, 6)
    few = rank <= n // (larger if n >= 1024 else smaller)
    return "lanczos" if components in ("minor", "principal") and n >= 448 and few else direct


def _check(weight: Tensor, rank: int, components: Components, weighting: str, solver: str, scaling: float) -> None:
    if isinstance(components, str):
        if components not in get_args(NamedBand):
            known = ", ".join(get_args(NamedBand))
            raise MiloraError(f"components={components!r} is unknown", f"choose one of {known}, or a position 0 … 1")
    elif isinstance(components, bool) or not 0 <= components <= 1:
        raise MiloraError(
            f"components={components!r} is outside 0 … 1", "0 has the largest singular values, 1 the least"
        )
    if weighting not in get_args(Weighting):
        raise MiloraError(f"weighting={weighting!r} is unknown", f"choose one of {', '.join(get_args(Weighting))}")
    if solver not in get_args(Solver):
        raise MiloraError(f"solver={solver!r} is unknown", f"choose one of {', '.join(get_args(Solver))}")
    if solver == "lanczos" and components not in ("minor", "principal"):
        raise MiloraError(f"solver='lanczos' cannot find components={components}", "use solver='auto'")
    check_weight(weight, rank)
    if scaling <= 0:
        raise MiloraError(f"scaling={scaling:g} is not positive", "set lora_alpha above 0")


def check_weight(weight: Tensor, rank: int) -> None:
    """Raise unless the weight is a finite matrix with at least `rank` components.

    Raises:
        MiloraError: it is not.
    """
    if weight.ndim != 2:
        raise MiloraError(f"a weight must be a matrix, got shape {tuple(weight.shape)}", "pass a 2-D tensor")
    check_rank(rank, tuple(weight.shape))
    if not torch.stack(weight.aminmax()).isfinite().all():
        raise MiloraError("the weight contains NaN or Inf", "load an undamaged checkpoint")


def check_rank(rank: int, shape: tuple[int, ...]) -> None:
    """Raise unless a weight of this shape has at least `rank` components.

    Raises:
        MiloraError: the rank is out of range.
    """
    if not 1 <= rank <= min(shape):
        raise MiloraError(
            f"rank {rank} is outside 1 … {min(shape)}, the largest possible rank of a {shape} weight",
            "lower the rank, or set one for this layer with rank_pattern",
        )


def _select(components: Components, rank: int, total: int, seed: int) -> Tensor:
    """Return the indices, ascending, of the selected components among `total` in descending order."""
    first = first_component(components, rank, total)
    if first is not None:
        return torch.arange(first, first + rank)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(total, generator=generator)[:rank].sort().values


def first_component(components: Components, rank: int, total: int) -> int | None:
    """Return the index of the first of `rank` consecutive components among `total`; None for random ones."""
    match components:
        case "minor":
            return total - rank
        case "principal":
            return 0
        case "middle":
            return (total - rank) // 2
        case "random":
            return None
        case position:
            return round(position * (total - rank))
