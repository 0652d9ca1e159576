"""The spectrum of one weight: all of its singular components, or those at both ends; and what they say of it."""

from dataclasses import dataclass

import torch
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from milora.method.decomposition import HAVE_FLOAT64, check_weight, decompose_weight

WHOLE_UP_TO = 1024
"""Columns up to which the whole decomposition in float64 takes no more than twice as long as both ends."""

ROUNDED_TO = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Singular components W V = U diag(S) of a weight W (out, in), in descending order and in float64.

    `U` is (out, k), `S` (k,), and `V` (in, k). If it is `whole`, k = min(out, in); else the components are the first
    `rank` and the last `rank`, k = 2·rank. `norm` is ‖W‖ (Frobenius).
    """

    U: Tensor
    S: Tensor
    V: Tensor
    rank: int
    whole: bool
    norm: float


@dataclass(frozen=True, slots=True)
class WeightFigures:
    """What the spectrum of a weight says.

    Attributes:
        shape: `(out, in)`.
        rank: r, the number of components at either end that the other figures are about.
        whole: whether `values` are all singular values, or r from the top and r from the bottom.
        values: singular values, descending.
        norm: ‖W‖ (Frobenius), as are all norms here.
        stable_rank: ‖W‖² / σ₁².
        condition: σ₁ / σ_min; infinite for a singular weight.
        minor_energy: ‖W_m‖² / ‖W‖² of the last r components, the part that MiLoRA starts from.
        principal_energy: the same of the first r.
        rounding: what a residual weight W − W_m loses in each dtype: ‖round(W − W_m) − (W − W_m)‖ / ‖W_m‖.
        in_own: ‖UᵀWV‖ with U and V the first r singular vectors of W itself.
        in_random: the same for random orthonormal U and V, in root mean square: r ‖W‖ / √(out·in).
    """

    shape: tuple[int, int]
    rank: int
    whole: bool
    values: list[float]
    norm: float
    stable_rank: float
    condition: float
    minor_energy: float
    principal_energy: float
    rounding: dict[str, float]
    in_own: float
    in_random: float


@torch.no_grad()
def find_spectrum(W: Tensor, rank: int, *, exact: bool = False) -> Spectrum:
    """Return the spectrum of a weight (out, in), whole if that is cheap or if it is to be `exact`.

    Raises:
        MiloraError: the weight is not a finite matrix, or has fewer components than `rank`.
    """
    check_weight(W, rank)
    if W.device.type not in HAVE_FLOAT64:
        W = W.cpu()
    norm = torch.linalg.vector_norm(W, dtype=torch.float64).item()
    smaller = min(W.shape)
    if exact or smaller <= WHOLE_UP_TO or 2 * rank > smaller:
        U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
        return Spectrum(U, S, Vh.T, rank, True, norm)
    ends = [decompose_weight(W, rank, components=end, weighting="orthonormal") for end in ("principal", "minor")]
    U, V = (torch.cat(both, 1).double() for both in zip(*((end.B, end.A.T) for end in ends), strict=True))
    return Spectrum(U, torch.cat([end.singular_values for end in ends]).double(), V, rank, False, norm)


@torch.no_grad()
def measure_weight(W: Tensor, spectrum: Spectrum) -> WeightFigures:
    """Return the figures of a weight."""
    r, S, squared = spectrum.rank, spectrum.S, spectrum.norm**2
    minor = spectrum.U[:, -r:] * S[-r:] @ spectrum.V[:, -r:].T
    residual, size = W.to(minor.device).double() - minor, S[-r:].norm()
    rounding = {
        str(dtype).removeprefix("torch."): _ratio((residual.to(dtype).double() - residual).norm(), size)
        for dtype in ROUNDED_TO
    }
    out_features, in_features = W.shape
    return WeightFigures(
        shape=(out_features, in_features),
        rank=r,
        whole=spectrum.whole,
        values=S.tolist(),
        norm=spectrum.norm,
        stable_rank=_ratio(squared, S[0].square()),
        condition=_ratio(S[0], S[-1]),
        minor_energy=_ratio(size.square(), squared),
        principal_energy=_ratio(S[:r].square().sum(), squared),
        rounding=rounding,
        in_own=S[:r].norm().item(),
        in_random=r * spectrum.norm / (out_features * in_features) ** 0.5,
    )


def _ratio(part: Tensor | float, whole: Tensor | float) -> float:
    """Return a quotient; infinity or NaN where there is none, as of a weight of zeros."""
    return (torch.as_tensor(part, dtype=torch.float64) / torch.as_tensor(whole, dtype=torch.float64)).item()


def measure_spectra(model: nn.Module, count: int = 4) -> dict[str, list[float]]:
    """Return all singular values, descending, of `count` linear weights spread evenly over the model's depth."""
    layers = {name: part for name, part in model.named_modules() if isinstance(part, (nn.Linear, Conv1D))}
    names = list(layers)
    step = max(1, len(names) // count)
    chosen = names[step // 2 :: step][:count]
    weights = {name: dequantize_module_weight(layers[name]).detach().float() for name in chosen}
    return {name: torch.linalg.svdvals(weight).tolist() for name, weight in weights.items()}
