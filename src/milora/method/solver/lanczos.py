"""Block Lanczos for either end of the spectrum of WᵀW, refined on W."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from milora.method.options import Components
from milora.method.solver.certificate import RELATIVE_MARK, Band
from milora.method.solver.inverse import Operator, inverses
from milora.method.solver.products import gram_lower, multiply, multiply_gram

BLOCK = 16
ROUNDS = 4


def has_room(rank: int, n: int) -> bool:
    """Return whether `rank` columns, their corrections and the other columns of a round fit into n dimensions."""
    return 2 * rank + 2 * BLOCK <= n


def lanczos_bands(W: Tensor, rank: int, components: Components, seed: int) -> Iterator[Band]:
    """Yield the `rank` smallest ("minor") or largest ("principal") singular components, each time more accurate.

    Block Lanczos on (WᵀW)⁻¹ or on WᵀW, with a tall W (m, n), finds a subspace, in float32 if that is enough.
    Rayleigh–Ritz on W in float64 refines it, repeated with corrections and with components found outside of it.
    """
    generator = torch.Generator().manual_seed(seed)
    minor = components == "minor"
    largest = _largest(W, generator) if minor else 0.0  # the principal band contains σ_max

    def tolerance(values: Tensor) -> float:
        if not minor:
            # The residual of a full float32 SVD grows with √n, and so does the rounding of float32 products.
            return 1.5e-8 * math.sqrt(W.shape[1])
        # An error e of the pair (1/σ², v) is a residual of about e σ. The goal is 1e-7 σ_max, as in a full float32 SVD,
        # and at most half the bound of the certificate; the rounding of a float32 inverse is 4e-6.
        full = 1e-7 * largest / values.reciprocal().mean().sqrt().item()
        return min(max(full, 4e-6), RELATIVE_MARK / 2)

    for apply in inverses(W, largest) if minor else _products(W, rank):
        start = _random(W, BLOCK, generator)
        basis, image = leading_eigenvectors(apply, start, rank, limit=6 * rank + 600, tolerance=tolerance)
        # U = W V / σ amplifies by σ_max/σ the error of V in large directions: in an image it is damped by (σ/σ_max)².
        if not minor:
            image = apply(image)
        elif image.dtype == torch.float32:
            # A float32 inverse would repeat its error: one step of iterative refinement.
            image = image.double() + apply(basis - multiply_gram(W, image.double()))
        basis = image.double()
        for _ in range(ROUNDS):
            U, S, V = _ritz(W, basis, minor)
            outside = _outside(V, apply, _random(W, 1, generator))
            seen = torch.cat([S[rank:], multiply(W, outside).norm(dim=0)])
            beyond = (seen.min() if minor else seen.max()).item()
            basis, U, S, V = V[:, : rank + BLOCK], U[:, :rank], S[:rank], V[:, :rank]
            yield Band(*_descending(U, S, V, minor), max(largest, S.max().item()), beyond)
            basis = torch.cat([basis, apply(multiply(W.T, U) - V * S).double(), outside], dim=1)


def leading_eigenvectors(
    apply: Operator, start: Tensor, wanted: int, *, limit: int, tolerance: Callable[[Tensor], float]
) -> tuple[Tensor, Tensor]:
    """Return approximate eigenvectors (n, wanted) to the largest eigenvalues of a symmetric `apply`, and their images.

    Block Lanczos starts from `start` (n, b) with full reorthogonalization (Golub & Underwood 1977), in the precision of
    `apply`. It stops once the residuals of the wanted Ritz pairs are below `tolerance` relative to their values in root
    mean square, or once the Krylov space has `limit` columns. The images, more accurate than the eigenvectors by one
    application, follow from the recurrence alone:

        apply(Q y) = θ Q y + Q_next R y_last
    """
    n = len(start)
    limit = min(limit, n)
    block = torch.linalg.qr(apply(start)).Q
    basis = block.new_empty(limit, n).T
    projected = block.new_zeros(limit, limit)
    columns, check = 0, 2 * wanted + start.shape[1]
    checked, before = 0, 1.0
    while True:
        latest = slice(columns, columns + block.shape[1])
        columns = latest.stop
        basis[:, latest] = block
        space = basis[:, :columns]
        image = apply(block)
        coefficients = space.T @ image
        projected[:columns, latest] = coefficients
        projected[latest, :columns] = coefficients.T
        block, coupling = torch.linalg.qr(image - space @ coefficients)
        # Again after the QR: if the space is nearly invariant, the remainder of the image is mostly rounding.
        block, correction = torch.linalg.qr(block - space @ (space.T @ block))
        if columns == limit or columns >= check:
            values, vectors = torch.linalg.eigh(projected[:columns, :columns])
            values, vectors = values[-wanted:], vectors[:, -wanted:]
            residuals = correction @ coupling @ vectors[latest]
            error = (residuals / values).norm().item() / wanted**0.5
            goal = tolerance(values)
            if columns == limit or error <= goal:
                eigenvectors = space @ vectors
                return eigenvectors, eigenvectors * values + block @ residuals
            # The column at which the line through the last two logarithmic errors meets the goal; at first a guess.
            slope = (math.log(before) - math.log(error)) / (columns - checked)
            farthest = columns // (4 if checked else 8)
            step = min(farthest, int(math.log(error / goal) / slope)) if slope > 0 else farthest
            checked, before, check = columns, error, columns + step
        block = block[:, : limit - columns]


def _outside(V: Tensor, apply: Operator, start: Tensor) -> Tensor:
    """Return the unit vector (n, 1) in the complement of V (n, p) that `apply` amplifies most.

    It reveals a component that V missed. It is found by Lanczos from a random start independent of that of V. A missed
    component is visible before the vector has converged, and ‖W v‖ never exceeds the true extreme.
    """

    def project(X: Tensor) -> Tensor:
        return X - V.to(X.dtype) @ (V.to(X.dtype).T @ X)

    limit = min(64, len(V) - V.shape[1])
    _, image = leading_eigenvectors(
        lambda X: project(apply(X)), project(start), 1, limit=limit, tolerance=lambda _: 3e-2
    )
    outside = project(project(image.double()))
    return torch.nn.functional.normalize(outside, dim=0)


def _ritz(W: Tensor, basis: Tensor, minor: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the singular triplets of W on the span of `basis` (n, p): U (m, p), S (p,), V (n, p), wanted first."""
    Q = torch.linalg.qr(basis).Q
    U, S, rotation = torch.linalg.svd(multiply(W, Q), full_matrices=False)
    V = Q @ rotation.T
    return _descending(U, S, V, minor)


def _descending(U: Tensor, S: Tensor, V: Tensor, minor: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Convert between descending order and the wanted values first: for the minor end, the order is reversed."""
    return (U.flip(1), S.flip(0), V.flip(1)) if minor else (U, S, V)


def _products(W: Tensor, rank: int) -> Iterator[Operator]:
    """Yield operators X ↦ WᵀW X, the cheapest first: with the Gram matrix if the rank is large enough to repay it."""
    m, n = W.shape
    if m >= 2 * n and rank > 2 * BLOCK:
        half = gram_lower(W)
        gram = half.tril() + half.tril(-1).T
        yield lambda X: multiply(gram, X.to(gram.dtype))
    yield lambda X: multiply_gram(W, X.to(W.dtype))


def _largest(W: Tensor, generator: torch.Generator) -> float:
    """Return σ_max from below, within 1 %: ‖WᵀW v‖^½, where v solves WᵀW v = σ² v to 2 %."""
    start = _random(W, 1, generator).to(W.dtype)
    _, image = leading_eigenvectors(lambda X: multiply_gram(W, X), start, 1, limit=64, tolerance=lambda _: 2e-2)
    return math.sqrt(image.norm().item())


def _random(W: Tensor, columns: int, generator: torch.Generator) -> Tensor:
    """Return a Gaussian start (n, columns), drawn on the CPU: it is the same on every device."""
    return torch.randn(W.shape[1], columns, generator=generator, dtype=torch.float64).to(W.device)
