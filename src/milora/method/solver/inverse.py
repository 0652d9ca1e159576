"""Operators for (WᵀW)⁻¹, whose largest eigenvalues belong to the smallest singular values of W."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from milora.method.solver.products import gram_lower

Operator = Callable[[Tensor], Tensor]

LIMIT = 1e9
"""The largest condition number: beyond it, the largest 1/σ² exceeds the precision of all others in float64."""


def inverses(W: Tensor, largest: float) -> Iterator[Operator]:
    """Yield operators X ↦ (WᵀW)⁻¹ X for a tall W (m, n), the cheapest first, each built on demand.

    An operator has the precision of its factorization, and a Gram matrix squares the condition number: the caller must
    refine and check the result on W, and try the next operator if that fails. A factorization that breaks down is
    skipped.
    """
    if not W.is_cpu:
        yield from _by_root(W)
    elif W.shape[0] == W.shape[1]:
        yield from _by_lu(W)
    elif W.dtype == torch.float32:
        yield from _by_cholesky(W, largest)
    yield from _by_shifted_cholesky(W)


def _by_root(W: Tensor) -> Iterator[Operator]:
    """Apply R Rᵀ with an explicit R = W⁻¹ or L⁻ᵀ: on a GPU, two products are faster than triangular solves."""
    if W.shape[0] == W.shape[1]:
        root, failed = torch.linalg.inv_ex(W)
    else:
        factor, failed = torch.linalg.cholesky_ex(gram_lower(W))
        identity = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
        root = torch.linalg.solve_triangular(factor, identity, upper=False).T
    if not failed and W.norm() * root.norm() < LIMIT:
        yield lambda X: root @ (root.T @ X.to(root.dtype))


def _by_lu(W: Tensor) -> Iterator[Operator]:
    """Apply W⁻¹ W⁻ᵀ: without a Gram matrix, the condition number is that of W."""
    # The LU of Wᵀ, whose columns are contiguous for LAPACK. In place: allocating another matrix takes 10 % of the time.
    factors = W.T.to(torch.float64, copy=True)
    pivots, failed = (factors.new_empty(0, dtype=torch.int32) for _ in range(2))
    torch.linalg.lu_factor_ex(factors, out=(factors, pivots, failed))
    diagonal = factors.diagonal().abs()
    if not failed and diagonal.max() < LIMIT * diagonal.min():
        yield lambda X: torch.linalg.lu_solve(
            factors, pivots, torch.linalg.lu_solve(factors, pivots, X.double()), adjoint=True
        )


def _by_cholesky(W: Tensor, largest: float) -> Iterator[Operator]:
    """Apply L⁻ᵀ L⁻¹ in float32, if rounding, about ε σ_max², does not affect the smallest pivot."""
    # A float32 Gram matrix has the components of W up to rounding errors of 4e-7 σ_max at 576 columns and 1e-7 σ_max at
    # 4096 columns, where float64 would take as long as all other steps together.
    # The upper triangle of the transpose, whose columns are contiguous for LAPACK; in place, as for the LU.
    upper = gram_lower(W.double() if W.shape[1] <= 1024 else W).T
    failed = upper.new_empty(0, dtype=torch.int32)
    torch.linalg.cholesky_ex(upper, upper=True, out=(upper, failed))
    if not failed and upper.diagonal().min().item() ** 2 > 100 * torch.finfo(torch.float32).eps * largest**2:
        yield _solves(upper.T.float())


def _by_shifted_cholesky(W: Tensor) -> Iterator[Operator]:
    """Apply the inverse of WᵀW + δI, which has the same eigenvectors in the same order."""
    gram = gram_lower(W.double())
    trace = gram.diagonal().sum()
    for shift in (1e-15, 1e-13):
        gram.diagonal().add_(shift * trace)
        factor, failed = torch.linalg.cholesky_ex(gram)
        if not failed:
            yield _solves(factor)
            return


def _solves(factor: Tensor) -> Operator:
    """Return X ↦ L⁻ᵀ L⁻¹ X. torch.cholesky_solve is three times slower for a few columns."""

    def apply(X: Tensor) -> Tensor:
        half = torch.linalg.solve_triangular(factor, X.to(factor.dtype), upper=False)
        whole: Tensor = torch.linalg.solve_triangular(factor.T, half, upper=True)
        return whole

    return apply
