"""Ways to apply (WᵀW)⁻¹, which turns the smallest singular values of W into the largest eigenvalues."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from milora.method.solver.products import gram_lower

Operator = Callable[[Tensor], Tensor]

LIMIT = 1e9
"""Of the condition: beyond it the largest 1/σ² drowns all others in double precision."""


def inverses(W: Tensor, largest: float) -> Iterator[Operator]:
    """Operators X ↦ (WᵀW)⁻¹ X for a tall W (m, n), cheapest first, each built when it is asked for.

    An operator answers in the precision of its factorisation and is only as good as that, and a Gram matrix squares the
    condition: who uses one refines and checks on W, and asks for the next if that fails. A factorisation that breaks
    down gives none.
    """
    if not W.is_cpu:
        yield from _by_root(W)
    elif W.shape[0] == W.shape[1]:
        yield from _by_lu(W)
    elif W.dtype == torch.float32:
        yield from _by_cholesky(W, largest)
    yield from _by_shifted_cholesky(W)


def _by_root(W: Tensor) -> Iterator[Operator]:
    """R Rᵀ with R = W⁻¹ or L⁻ᵀ at hand: two products, where in a triangular solve a GPU waits for row after row."""
    if W.shape[0] == W.shape[1]:
        root, failed = torch.linalg.inv_ex(W)
    else:
        factor, failed = torch.linalg.cholesky_ex(gram_lower(W))
        identity = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
        root = torch.linalg.solve_triangular(factor, identity, upper=False).T
    if not failed and W.norm() * root.norm() < LIMIT:
        yield lambda X: root @ (root.T @ X.to(root.dtype))


def _by_lu(W: Tensor) -> Iterator[Operator]:
    """W⁻¹ W⁻ᵀ: no Gram matrix, so the condition of W itself, and no product."""
    # Of Wᵀ, whose columns LAPACK finds contiguous; in place, for the pages of a new matrix cost a tenth of the time.
    factors = W.T.to(torch.float64, copy=True)
    pivots, failed = (factors.new_empty(0, dtype=torch.int32) for _ in range(2))
    torch.linalg.lu_factor_ex(factors, out=(factors, pivots, failed))
    diagonal = factors.diagonal().abs()
    if not failed and diagonal.max() < LIMIT * diagonal.min():
        yield lambda X: torch.linalg.lu_solve(
            factors, pivots, torch.linalg.lu_solve(factors, pivots, X.double()), adjoint=True
        )


def _by_cholesky(W: Tensor, largest: float) -> Iterator[Operator]:
    """L⁻ᵀ L⁻¹ in float32, where rounding, about ε σ_max², leaves the smallest pivot alone."""
    # The components found are those of a float32 Gram matrix with its rounding errors, 4e-7 σ_max away from W's at 576
    # columns and 1e-7 at 4096, where double precision would cost as much as all the rest.
    # The upper triangle of the transpose, whose columns LAPACK finds contiguous; in place, as the LU is.
    upper = gram_lower(W.double() if W.shape[1] <= 1024 else W).T
    failed = upper.new_empty(0, dtype=torch.int32)
    torch.linalg.cholesky_ex(upper, upper=True, out=(upper, failed))
    if not failed and upper.diagonal().min().item() ** 2 > 100 * torch.finfo(torch.float32).eps * largest**2:
        yield _solves(upper.T.float())


def _by_shifted_cholesky(W: Tensor) -> Iterator[Operator]:
    """The inverse of WᵀW + δI, which has the same eigenvectors in the same order."""
    gram = gram_lower(W.double())
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
