"""What training did to one weight, from the factors of its update: ΔW is never formed or decomposed.

With ΔW = up·down, a QR of both factors and an SVD of a small core give the singular components of ΔW exactly:

    up = Q₁ R₁    downᵀ = Q₂ R₂    R₁ R₂ᵀ = X S Yᵀ    ΔW = (Q₁ X) S (Q₂ Y)ᵀ
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from milora.method.analysis.spectrum import Spectrum
from milora.method.decomposition import decompose_weight
from milora.method.solver.products import multiply

INTRUDERS_AMONG = 10  # as in arXiv 2410.21228, figure 3
INTRUDER_BELOW = 0.5


@dataclass(frozen=True, slots=True)
class Similarity:
    """φ(A, B) = ‖AᵀB‖² / r of the first r left singular vectors of ΔW and r of W's.

    Those of W are its first r, its last r, or random ones: for these it is the mean over all choices of r.
    """

    top: float
    random: float
    bottom: float


@dataclass(frozen=True, slots=True)
class UpdateFigures:
    """What an update ΔW did to a weight W. U and V are the first r singular vectors of ΔW; norms are Frobenius.

    Attributes:
        rank: r, the number of directions that are looked at; fewer if ΔW has fewer.
        norm: ‖ΔW‖.
        effective_rank: exp(−Σ p log p) with p = S / ΣS, S the singular values of ΔW (Roy & Vetterli 2007).
        in_update: ‖UᵀWV‖.
        update_in_own: ‖UᵀΔWV‖.
        amplification: ‖UᵀΔWV‖ / ‖UᵀWV‖ (paper, table 7, after Hu et al. 2021).
        similarity: see there; None if ΔW is zero.
        outputs: ‖uᵢᵀΔW‖² / ‖ΔW‖² for each left singular vector of W in its spectrum: the share of the update that
            writes to the outputs of component i.
        inputs: ‖ΔWvᵢ‖² / ‖ΔW‖² for each right one: the share that reads its inputs.
        between: the shares of outputs and of inputs in the components between the ends of a spectrum that is not
            whole. What is missing to 1 lies outside of all components, as on the longer side of W.
        intruders: how many of the first 10 left singular vectors of W + ΔW have a cosine below 0.5 with every one of
            W's (Shuttleworth et al. 2024); None if the spectrum is not whole.
    """

    rank: int
    norm: float
    effective_rank: float
    in_update: float
    update_in_own: float
    amplification: float
    similarity: Similarity | None
    outputs: list[float]
    inputs: list[float]
    between: tuple[float, float]
    intruders: int | None


@torch.no_grad()
def measure_update(W: Tensor, spectrum: Spectrum, up: Tensor, down: Tensor) -> UpdateFigures:
    """Return the figures of ΔW = up·down.

    Args:
        W: the weight, `(out, in)`.
        spectrum: its spectrum; its rank is r.
        up: `(out, q)`, the scaling in it.
        down: `(q, in)`.
    """
    device = spectrum.U.device
    W, up, down = W.to(device), up.to(device).double(), down.to(device).double()
    U, S, V = decompose_product(up, down)
    norm = S.norm()
    if not norm > 0:
        nothing = [0.0] * len(spectrum.S)
        return UpdateFigures(0, *(0.0,) * 5, None, nothing, nothing, (0.0, 0.0), 0 if spectrum.whole else None)
    r = min(spectrum.rank, len(S))
    in_update = (U[:, :r].T @ multiply(W, V[:, :r])).norm().item()
    update_in_own = S[:r].norm().item()
    share = (S / norm).square()
    left, right = (spectrum.U.T @ U).square(), (spectrum.V.T @ V).square()  # squared cosines, (k, q)
    reached = _reach(W, spectrum, U, left)
    outputs, inputs = left @ share, right @ share
    between = reached @ share - outputs.sum(), _reach(W.T, spectrum, V, right) @ share - inputs.sum()
    return UpdateFigures(
        rank=r,
        norm=norm.item(),
        effective_rank=effective_rank(S).item(),
        in_update=in_update,
        update_in_own=update_in_own,
        amplification=update_in_own / in_update if in_update else float("inf"),
        similarity=Similarity(
            top=left[: spectrum.rank, :r].sum().item() / r,
            # Each component of W is among a random r of all with the same probability.
            random=spectrum.rank / min(W.shape) * reached[:r].sum().item() / r,
            bottom=left[-spectrum.rank :, :r].sum().item() / r,
        ),
        outputs=outputs.tolist(),
        inputs=inputs.tolist(),
        between=(between[0].item(), between[1].item()),
        intruders=_count_intruders(W, spectrum, up, down) if spectrum.whole else None,
    )


def decompose_product(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the singular components U, S, V of up·down that are not zero, descending."""
    Q_up, R_up = torch.linalg.qr(up)
    Q_down, R_down = torch.linalg.qr(down.T)
    X, S, Yh = torch.linalg.svd(R_up @ R_down.T)
    rounding = torch.finfo(S.dtype).eps * max(len(up), down.shape[1])
    rank = int((rounding * S[0] < S).sum())
    return Q_up @ X[:, :rank], S[:rank], Q_down @ Yh[:rank].T


def effective_rank(S: Tensor) -> Tensor:
    """Return exp(−Σ p log p) with p = S / ΣS over the last dimension."""
    entropy: Tensor = torch.special.entr(S / S.sum(-1, keepdim=True)).sum(-1)
    return entropy.exp()


def _reach(W: Tensor, spectrum: Spectrum, U: Tensor, along: Tensor) -> Tensor:
    """Return ‖Pu‖² of each column of `U`, with P the projection on the outputs of W, which its components span.

    `along` are squared cosines with the components of the spectrum.
    """
    if spectrum.whole:
        return along.sum(0)
    if W.shape[0] <= W.shape[1]:
        return along.new_ones(U.shape[1])
    squares: Tensor = (torch.linalg.qr(W.double()).Q.T @ U).square()
    return squares.sum(0)


def _count_intruders(W: Tensor, spectrum: Spectrum, up: Tensor, down: Tensor) -> int:
    count = min(INTRUDERS_AMONG, *W.shape)
    tuned = W.double() + up @ down
    found = decompose_weight(tuned.float(), count, components="principal", weighting="orthonormal").B.double()
    return int(((spectrum.U.T @ found).abs().amax(0) < INTRUDER_BELOW).sum())
