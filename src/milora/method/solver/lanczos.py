"""Block Lanczos for either end of the spectrum of WᵀW, refined on W itself."""

from collections.abc import Iterator

import torch
from torch import Tensor

from milora.method.solver.certificate import Band, probe
from milora.method.solver.inverse import Operator, inverses
from milora.method.solver.products import gram_lower, multiply

BLOCK = 16
TOLERANCE = {"minor": 3e-5, "principal": 3e-6}
ROUNDS = 4


def has_room(rank: int, n: int) -> bool:
    """Whether `rank` columns, their corrections and a probe fit side by side into n dimensions."""
    return 2 * rank + 5 * BLOCK <= n


def lanczos_bands(weight: Tensor, W: Tensor, rank: int, components: str, seed: int) -> Iterator[Band]:
    """The `rank` smallest ("minor") or largest ("principal") singular components, better and better until one is taken.

    `weight` (m, n) is tall and comes in its own precision and, as `W`, in float64. Block Lanczos on (WᵀW)⁻¹ or on WᵀW
    gives a subspace; Rayleigh–Ritz on W, repeated with corrections and with what the probe found outside, refines it.
    """
    generator = torch.Generator().manual_seed(seed)
    minor = components == "minor"
    largest = _largest(weight, generator)
    for apply in inverses(weight, W, largest) if minor else _products(weight, rank):
        start = _random(weight, BLOCK, generator)
        basis = leading_eigenvectors(apply, start, rank, limit=6 * rank + 400, tolerance=TOLERANCE[components])
        # U = W V / σ amplifies what leaked into V from a large direction by σ_max/σ; once more the inverse damps that
        # by (σ/σ_max)².
        image = apply(basis)
        if minor and image.dtype == torch.float32:
            # What a float32 inverse gets wrong it would get wrong again: one step of iterative refinement.
            image = image + apply(basis - _product(W, image))
        basis = image.double()
        for _ in range(ROUNDS):
            U, S, V = _ritz(W, basis, minor)
            values, outside = probe(W, V, apply, _random(weight, BLOCK, generator))
            seen = torch.cat([S[rank:], values])
            beyond = (seen.min() if minor else seen.max()).item()
            basis, U, S, V = V[:, : rank + BLOCK], U[:, :rank], S[:rank], V[:, :rank]
            yield Band(*_descending(U, S, V, minor), max(largest, S.max().item()), beyond)
            correction = apply(multiply(W.T, U) - V * S).double()
            basis = torch.cat([basis, correction, outside[:, :BLOCK] if minor else outside[:, -BLOCK:]], dim=1)


def leading_eigenvectors(apply: Operator, start: Tensor, wanted: int, *, limit: int, tolerance: float) -> Tensor:
    """Approximate eigenvectors (n, wanted) to the largest eigenvalues, ascending, of the symmetric operator `apply`.

    Block Lanczos from `start` (n, b) with full reorthogonalisation (Golub & Underwood 1977), in the precision in which
    `apply` answers, until the residual of every wanted Ritz pair is below `tolerance` of its value or the Krylov space
    has `limit` columns.
    """
    n = len(start)
    limit = min(limit, n)
    block = torch.linalg.qr(apply(start)).Q
    basis = block.new_empty(limit, n).T
    projected = block.new_zeros(limit, limit)
    columns, check = 0, 2 * wanted + start.shape[1]
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
            check = columns + columns // 8
            values, vectors = torch.linalg.eigh(projected[:columns, :columns])
            values, vectors = values[-wanted:], vectors[:, -wanted:]
            residuals = (correction @ coupling @ vectors[latest]).norm(dim=0)
            if columns == limit or bool((residuals <= tolerance * values).all()):
                eigenvectors: Tensor = space @ vectors
                return eigenvectors
        block = block[:, : limit - columns]


def _ritz(W: Tensor, basis: Tensor, minor: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The singular triplets of W restricted to the span of `basis` (n, p): U (m, p), S (p,), V (n, p), wanted first."""
    Q = torch.linalg.qr(basis).Q
    U, S, rotation = torch.linalg.svd(multiply(W, Q), full_matrices=False)
    V = Q @ rotation.T
    return _descending(U, S, V, minor)


def _descending(U: Tensor, S: Tensor, V: Tensor, minor: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Between singular values in descending order and the wanted first: the minor end is turned around."""
    return (U.flip(1), S.flip(0), V.flip(1)) if minor else (U, S, V)


def _products(weight: Tensor, rank: int) -> Iterator[Operator]:
    """Operators X ↦ WᵀW X, cheapest first: by the Gram matrix where the many steps of a large rank repay it."""
    m, n = weight.shape
    if m >= 2 * n and rank > 2 * BLOCK:
        half = gram_lower(weight)
        gram = half.tril() + half.tril(-1).T
        yield lambda X: multiply(gram, X.to(gram.dtype))
    yield lambda X: _product(weight, X)


def _product(weight: Tensor, X: Tensor) -> Tensor:
    """WᵀW X, in the weight's precision."""
    return multiply(weight.T, multiply(weight, X.to(weight.dtype)))


def _largest(weight: Tensor, generator: torch.Generator) -> float:
    """σ_max, from below, within 1 %."""
    start = _random(weight, 1, generator)
    vector = leading_eigenvectors(lambda X: _product(weight, X), start, 1, limit=64, tolerance=1e-2)
    return float((weight @ vector).norm())


def _random(weight: Tensor, columns: int, generator: torch.Generator) -> Tensor:
    """Gaussian start (n, columns), drawn on the CPU: the same whatever the device."""
    return torch.randn(weight.shape[1], columns, generator=generator, dtype=torch.float64).to(weight.device)
