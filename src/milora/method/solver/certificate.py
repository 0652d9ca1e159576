"""The certificate of a band of singular components: how accurate it is, and the bounds that it must meet."""

from dataclasses import dataclass

import torch
from torch import Tensor

from milora.method.options import Components
from milora.method.solver.products import multiply

RELATIVE_MARK = 1e-4
"""Errors below this fraction of the band are lost when the factors are stored in bf16."""

SKETCH = 8


@dataclass(frozen=True, slots=True)
class Band:
    """Singular components W V = U diag(S): `U` (m, r), `S` (r,) descending, `V` (n, r).

    `largest` is the largest singular value of W. `beyond` is the nearest singular value found outside the band: the
    smallest above a minor band, the largest below a principal band; None if the band is not an end of the spectrum.
    """

    U: Tensor
    S: Tensor
    V: Tensor
    largest: float
    beyond: float | None


@dataclass(frozen=True, slots=True)
class Certificate:
    """How well a band solves the singular value problem of its weight W, and how it was found.

    Attributes:
        method: "lanczos", "gram", "exact", or "exact float64", the last fallback of a float32 weight.
        residual: the larger of ‖W V − U S‖ and ‖Wᵀ U − V S‖ (Frobenius), divided by σ_max √r.
        relative_residual: the same, divided by ‖S_m‖; infinite for a band of zeros.
        orthonormality: the larger of ‖UᵀU − I‖ and ‖VᵀV − I‖, divided by √r.
        beyond: the nearest singular value found outside the band; None for "middle" and "random".
        fallback: why the result of a faster method or of another device was rejected; empty if none was.

    All values are measured in the precision of the solver, before the factors are rounded to the returned dtype.
    """

    method: str
    residual: float
    relative_residual: float
    orthonormality: float
    beyond: float | None
    fallback: str = ""

    @property
    def fell_back(self) -> bool:
        """Return whether the result comes from another method or device than the first one tried."""
        return bool(self.fallback)


def certify(W: Tensor, band: Band, method: str, *, fallback: str = "") -> Certificate:
    """Measure `band` against `W` (m, n).

    With more than `SKETCH` components, Frobenius norms are estimated without bias from `SKETCH` random combinations of
    them (Hutchinson 1990). The squared estimate follows a χ² distribution with at least 8 degrees of freedom: it is
    below a tenth of the norm with probability 1e-7.
    """
    U, S, V = band.U, band.S, band.V
    rank = len(S)
    if rank > SKETCH:
        generator = torch.Generator().manual_seed(rank)
        combine = (torch.randn(rank, SKETCH, generator=generator) / SKETCH**0.5).to(S)
    else:
        combine = torch.eye(rank, dtype=S.dtype, device=S.device)
    both = torch.cat([combine, S.unsqueeze(1) * combine], dim=1)
    (combine_U, combine_US), (combine_V, combine_VS) = (multiply(X, both).chunk(2, dim=1) for X in (U, V))
    residual = max(
        (multiply(X, Y) - Z).norm().item() for X, Y, Z in ((W, combine_V, combine_US), (W.T, combine_U, combine_VS))
    )
    deviation = max((multiply(X.T, Y) - combine).norm().item() for X, Y in ((U, combine_U), (V, combine_V)))
    size, scale = S.norm().item(), band.largest * rank**0.5
    return Certificate(
        method=method,
        residual=residual / scale if scale else residual,
        relative_residual=residual / size if size else float("inf"),
        orthonormality=deviation / rank**0.5,
        beyond=band.beyond,
        fallback=fallback,
    )


def objection(certificate: Certificate, band: Band, components: Components, noise: float) -> str:
    """Return why the band must be rejected, or "" if it is accepted.

    `noise` is the expected rounding error relative to σ_max: singular values that differ by less count as equal.
    """
    if not (certificate.residual <= noise or certificate.relative_residual <= RELATIVE_MARK):
        return f"{certificate.method}: residual {certificate.relative_residual:.1e} of the band"
    if not certificate.orthonormality <= noise:
        return f"{certificate.method}: orthonormal only to {certificate.orthonormality:.1e}"
    slack = noise * band.largest
    match components, band.beyond:
        case "minor", float(beyond) if beyond < band.S[0].item() * (1 - RELATIVE_MARK) - slack:
            return f"{certificate.method}: a component at {beyond:.3e} was missed"
        case "principal", float(beyond) if beyond > band.S[-1].item() * (1 + RELATIVE_MARK) + slack:
            return f"{certificate.method}: a component at {beyond:.3e} was missed"
    return ""
