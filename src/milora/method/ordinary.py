"""The updates of an adapter's layers as one ordinary LoRA: its factors, and what its config says of them."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig
from torch import Tensor

from milora.method.errors import MiloraError
from milora.method.variant.weights import flatten_factors

# ‖ΔW − ΔW_rounded‖ / ‖ΔW‖ up to which factors take the dtype of the base: its products are rounded by as much.
EXACT_ENOUGH = 2**-8
# What PEFT 0.13 knows, and readers of adapters look for. It stops at any other key.
CLASSIC = (
    *("peft_type", "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode"),
    *("r", "lora_alpha", "lora_dropout", "target_modules", "fan_in_fan_out", "bias", "use_rslora", "use_dora"),
    *("modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern"),
)


@dataclass(frozen=True, slots=True)
class OrdinaryFactors:
    """A `(E·rank, in)` and B `(out, rank·E)` of each layer by name, without a scaling, on the CPU.

    Attributes:
        errors: ‖ΔW − B A‖ / ‖ΔW‖ (Frobenius) of each layer, by recompression and rounding.
    """

    rank: int
    dtype: torch.dtype
    factors: dict[str, tuple[Tensor, Tensor]]
    errors: dict[str, float]


def pack_updates(
    updates: dict[str, tuple[Tensor, Tensor]],
    rank: int | None,
    dtype: torch.dtype | None,
    preferred: torch.dtype | None = None,
) -> OrdinaryFactors:
    """Bring ΔW = up·down of all layers to one rank and one dtype; smaller ranks are padded with zeros.

    Args:
        updates: `up` `(E, out, r)`, with the scaling in it, and `down` `(E, r, in)` of each layer of E matrices.
        rank: recompress to it; None is the largest r, which is exact.
        dtype: the dtype of the factors; None is `preferred` where that is exact enough, else their own.

    Raises:
        MiloraError: `rank` is out of range, or a factor is not finite in `dtype`.
    """
    exact_rank = max(up.shape[-1] for up, _ in updates.values())
    if rank is not None and not 1 <= rank <= exact_rank:
        raise MiloraError(f"rank={rank} is outside 1 … {exact_rank}", f"rank {exact_rank} is exact")
    updates = {name: (up.detach().cpu(), down.detach().cpu()) for name, (up, down) in updates.items()}
    written = {
        name: _compress(up, down, rank) if rank and up.shape[-1] > rank else (up, down)
        for name, (up, down) in updates.items()
    }
    trained = next(iter(updates.values()))[0].dtype
    if dtype is None and preferred not in (None, trained):
        rounded = _round(written, preferred)
        if all(_relative_error(written[name], pair) <= EXACT_ENOUGH for name, pair in rounded.items()):
            dtype = preferred
    written = _round(written, dtype or trained)
    overflowing = [name for name, pair in written.items() if not all(factor.isfinite().all() for factor in pair)]
    if overflowing:
        raise MiloraError(f"{overflowing[0]}: a factor is not finite in {dtype or trained}", "write torch.float32")
    errors = {name: _relative_error(updates[name], pair) for name, pair in written.items()}
    found = rank or exact_rank
    factors = {
        name: flatten_factors(_widen(down.mT, found).mT.contiguous(), _widen(up, found))
        for name, (up, down) in written.items()
    }
    return OrdinaryFactors(found, dtype or trained, factors, errors)


def describe_ordinary(saved: dict[str, Any], rank: int) -> dict[str, Any]:
    """Return an adapter's saved config as that of an ordinary LoRA of one rank with the scaling in its factors.

    Keys that older versions of PEFT do not know are left out where they have their default.
    """
    saved = saved | {"init_lora_weights": True, "inference_mode": True, "r": rank, "lora_alpha": rank}
    saved |= {"use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}}
    return keep_known(saved)


def keep_known(saved: dict[str, Any]) -> dict[str, Any]:
    """Return the classic keys of a saved config, and those of LoraConfig's others that are not at their default.

    PEFT writes sets in an order that differs between processes. Here their names are sorted.
    """
    defaults = LoraConfig(peft_version=saved.get("peft_version")).to_dict()  # type: ignore[no-untyped-call]
    kept = {}
    for key, value in sorted(saved.items()):
        if key in CLASSIC or value != defaults.get(key, value):
            kept[key] = sorted(value) if key.startswith("target_") and isinstance(value, list) else value
    return kept


def _round(pairs: dict[str, tuple[Tensor, Tensor]], dtype: torch.dtype) -> dict[str, tuple[Tensor, Tensor]]:
    return {name: (up.to(dtype), down.to(dtype)) for name, (up, down) in pairs.items()}


def _widen(factor: Tensor, rank: int) -> Tensor:
    return F.pad(factor, (0, rank - factor.shape[-1])).contiguous()


def _compress(up: Tensor, down: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the best approximation of up·down of a rank, by QR of both and an SVD of the core, in float64."""
    Q_up, R_up = torch.linalg.qr(up.double())
    Q_down, R_down = torch.linalg.qr(down.double().mT)
    U, S, Vh = torch.linalg.svd(R_up @ R_down.mT)
    root = S[..., :rank].sqrt()
    new_up, new_down = (Q_up @ U[..., :rank]) * root[..., None, :], root[..., None] * Vh[..., :rank, :] @ Q_down.mT
    return new_up.to(up), new_down.to(up)


def _relative_error(update: tuple[Tensor, Tensor], written: tuple[Tensor, Tensor]) -> float:
    """Return ‖up·down − up'·down'‖ / ‖up·down‖."""
    if all(one is other or torch.equal(one, other) for one, other in zip(update, written, strict=True)):
        return 0.0
    (up, down), (new_up, new_down) = ((a.double(), b.double()) for a, b in (update, written))
    norm = square_product(up, down) ** 0.5
    error = square_product(torch.cat([up, -new_up], -1), torch.cat([down, new_down], -2)) ** 0.5
    return error / norm if norm else 0.0


def square_product(up: Tensor, down: Tensor) -> float:
    """Return ‖up·down‖² (Frobenius), summed over a stack, from the two small Gram matrices."""
    return max(float(((up.mT @ up) * (down @ down.mT)).sum()), 0.0)
