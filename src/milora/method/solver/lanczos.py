"""Block Lanczos for either end of the spectrum of WᵀW, refined on W itself."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from milora.method.solver.certificate import RELATIVE_MARK, Band
from milora.method.solver.inverse import Operator, inverses
from milora.method.solver.products import gram_lower, multiply, multiply_gram

BLOCK = 16
ROUNDS = 4


def has_room(rank: int, n: int) -> bool:
    """Whether `rank` columns, their corrections and what else a round keeps fit side by side into n dimensions."""
    return 2 * rank + 2 * BLOCK <= n


def lanczos_bands(W: Tensor, rank: int, components: str, seed: int) -> Iterator[Band]:
    """The `rank` smallest ("minor") or largest ("principal") singular components, better and better until one is taken.

    Block Lanczos on (WᵀW)⁻¹ or on WᵀW, W (m, n) tall, gives a subspace, in float32 where that is enough; Rayleigh–Ritz
    on W in float64, repeated with corrections and with what was found outside, refines it.
    """
    generator = torch.Generator().manual_seed(seed)
    minor = components == "minor"
    largest = _largest(W, generator) if minor else 0.0  # the principal band holds σ_max itself

    def tolerance(values: Tensor) -> float:
        if not minor:
            # The residual of a full float32 SVD grows like this, and so does the rounding of float32 products.
            return 1.5e-8 * math.sqrt(W.shape[1])
        # An error e of the pair (1/σ², v) is a residual of about e σ: asked to be 1e-7 σ_max, what a full float32 SVD
        # leaves, and half the certificate's mark at most; rounding of a float32 inverse allows no less than 4e-6.
        full = 1e-7 * largest / values.reciprocal().mean().sqrt().item()
        return min(max(full, 4e-6), RELATIVE_MARK / 2)

    for apply in inverses(W, largest) if minor else _products(W, rank):
        start = _random(W, BLOCK, generator)
        basis, image = leading_eigenvectors(apply, start, rank, limit=6 * rank + 600, tolerance=tolerance)
        # U = W V / σ amplifies by σ_max/σ what leaked into V from large directions: an image has it damped (σ/σ_max)².
        if not minor:
            image = apply(image)
        elif image.dtype == torch.float32:
            # What a float32 inverse gets wrong it would get wrong again: one step of iterative refinement.
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
    """Approximate eigenvectors (n, wanted) to the largest eigenvalues of the symmetric `apply`, and their images.

    Block Lanczos from `start` (n, b) with full reorthogonalisation (Golub & Underwood 1977), in the precision in which
    `apply` answers, until the residuals of the wanted Ritz pairs are below `tolerance` of their values in root mean
    square, or the Krylov space has `limit` columns. The images, one application better than the eigenvectors, follow
    from the recurrence alone:

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
        # Again after the QR: where the space is nearly invariant, what is left of the image is mostly rounding.
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
            # Where the line through the last two errors, on a logarithmic scale, meets the goal; at first a guess.
            slope = (math.log(before) - math.log(error)) / (columns - checked)
            farthest = columns // (4 if checked else 8)
            step = min(farthest, int(math.log(error / goal) / slope)) if slope > 0 else farthest
            checked, before, check = columns, error, columns + step
        block = block[:, : limit - columns]


def _outside(V: Tensor, apply: Operator, start: Tensor) -> Tensor:
    """The unit vector (n, 1), in the complement of V (n, p), that `apply` amplifies most: what V missed, if anything.

    Lanczos again, from a random start that owes nothing to the one that found V. A missed component stands out before
    the vector has converged, and W times the vector is never beyond the true extreme.
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
    """The singular triplets of W restricted to the span of `basis` (n, p): U (m, p), S (p,), V (n, p), wanted first."""
    Q = torch.linalg.qr(basis).Q
    U, S, rotation = torch.linalg.svd(multiply(W, Q), full_matrices=False)
    V = Q @ rotation.T
    return _descending(U, S, V, minor)


def _descending(U: Tensor, S: Tensor, V: Tensor, minor: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Between singular values in descending order and the wanted first: the minor end is turned around."""
    return (U.flip(1), S.flip(0), V.flip(1)) if minor else (U, S, V)


def _products(W: Tensor, rank: int) -> Iterator[Operator]:
    """Operators X ↦ WᵀW X, cheapest first: by the Gram matrix where the many steps of a large rank repay it."""
    m, n = W.shape
    if m >= 2 * n and rank > 2 * BLOCK:
        half = gram_lower(W)
        gram = half.tril() + half.tril(-1).T
        yield lambda X: multiply(gram, X.to(gram.dtype))
    yield lambda X: multiply_gram(W, X.to(W.dtype))


def _largest(W: Tensor, generator: torch.Generator) -> float:
    """σ_max, from below, within 1 %: ‖WᵀW v‖^½, where v solves WᵀW v = σ² v to 2 %."""
    start = _random(W, 1, generator).to(W.dtype)
    _, image = leading_eigenvectors(lambda X: multiply_gram(W, X), start, 1, limit=64, tolerance=lambda _: 2e-2)
    return math.sqrt(image.norm().item())


def _random(W: Tensor, columns: int, generator: torch.Generator) -> Tensor:
    """Gaussian start (n, columns), drawn on the CPU: the same whatever the device."""
    return torch.randn(W.shape[1], columns, generator=generator, dtype=torch.float64).to(W.device)
