"""Ways to apply (WᵀW)⁻¹, which turns the smallest singular values of W into the largest eigenvalues."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from milora.method.solver.products import gram_lower

Operator = Callable[[Tensor], Tensor]


def inverses(weight: Tensor, W: Tensor, largest: float) -> Iterator[Operator]:
    """Operators X ↦ (WᵀW)⁻¹ X, cheapest first, each built when it is asked for.

    `weight` (m, n) is tall and comes in its own precision and, as `W`, in float64. An operator answers in the precision
    of its factorisation and is only as good as that, and a Gram matrix squares the condition: who uses one refines and
    checks on W, and asks for the next if that fails. A factorisation that breaks down gives none.
    """
    if W.shape[0] == W.shape[1]:
        yield from _by_lu(W)
    elif weight.dtype == torch.float32 and weight.is_cpu:
        yield from _by_cholesky(weight, largest)
    yield from _by_shifted_cholesky(W)


def _by_lu(weight: Tensor) -> Iterator[Operator]:
    """W⁻¹ W⁻ᵀ: no Gram matrix, so the condition of W itself, and no product."""
    factors, pivots, failed = torch.linalg.lu_factor_ex(weight)
    diagonal = factors.diagonal().abs()
    # 1/σ² of what is smaller would drown everything else in double precision.
    if not failed and diagonal.min() > 1e-9 * diagonal.max():
        yield lambda X: torch.linalg.lu_solve(
            factors, pivots, torch.linalg.lu_solve(factors, pivots, X.double(), adjoint=True)
        )


def _by_cholesky(weight: Tensor, largest: float) -> Iterator[Operator]:
    """L⁻ᵀ L⁻¹ in float32, where rounding, about ε σ_max², leaves the smallest pivot alone."""
    factor, failed = torch.linalg.cholesky_ex(gram_lower(weight))
    if not failed and factor.diagonal().min().item() ** 2 > 100 * torch.finfo(factor.dtype).eps * largest**2:
        yield _solves(factor)


def _by_shifted_cholesky(weight: Tensor) -> Iterator[Operator]:
    """The inverse of WᵀW + δI, which has the same eigenvectors in the same order."""
    gram = gram_lower(weight)
    trace = gram.diagonal().sum()
    for shift in (1e-15, 1e-13):
        gram.diagonal().add_(shift * trace)
        factor, failed = torch.linalg.cholesky_ex(gram)
        if not failed:
            yield _solves(factor)
            return


def _solves(factor: Tensor) -> Operator:
    """X ↦ L⁻ᵀ L⁻¹ X. (torch.cholesky_solve is three times slower for a few columns.)"""

    def apply(X: Tensor) -> Tensor:
        half = torch.linalg.solve_triangular(factor, X.to(factor.dtype), upper=False)
        whole: Tensor = torch.linalg.solve_triangular(factor.T, half, upper=True)
        return whole

    return apply
