"""Exports a trained adapter to formats that other tools load: an ordinary LoRA, or a residual model and adapter."""

from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor

from milora.method.errors import MiloraError
from milora.method.files import filling
from milora.method.layers import milora_layers
from milora.method.variant.config import lora_config, make_ordinary_config
from milora.method.variant.linear import update_factors, without_initial
from milora.method.variant.weights import trained_factors


@dataclass(frozen=True, slots=True)
class ExportReport:
    """Where a LoRA was written, its rank, and the error ‖ΔW − ΔW_rank‖/‖ΔW‖ (Frobenius) of each layer by name."""

    path: Path
    rank: int
    errors: dict[str, float]

    @property
    def largest_error(self) -> float:
        return max(self.errors.values())


def save_milora_as_lora(
    path: str | Path, model: PeftModel, *, adapter_name: str = "default", rank: int | None = None
) -> ExportReport:
    """Write a MiLoRA adapter as one ordinary LoRA for the untouched base, loadable by PEFT, vLLM and llama.cpp.

        ΔW = s·(B A − B₀ A₀) = s·[B − B₀, B₀] [A; A − A₀]        rank 2r, exact

    The scaling is folded into B (lora_alpha = r), and smaller ranks of a rank pattern are padded with zeros: readers
    need not support patterns or rsLoRA.

    Args:
        path: the folder to write to.
        model: the trained model.
        adapter_name: the adapter to export.
        rank: recompress to this rank by QR of both factors and an SVD of the 2r × 2r core, in float64. The result is
            the best approximation of that rank (Eckart–Young), and the report contains its error.

    Raises:
        MiloraError: the adapter was not initialized by milora, or `rank` is outside 1 … 2r.
    """
    return write_lora(Path(path), _combine(model, adapter_name, rank))


def replace_by_lora(model: PeftModel, adapter_name: str = "default") -> PeftModel:
    """Return the base with the ordinary LoRA that `save_milora_as_lora` would write, in eval mode.

    `model` is consumed.

    Raises:
        MiloraError: the adapter was not initialized by milora.
    """
    found = _combine(model, adapter_name, None)
    ordinary = PeftModel(model.unload(), found.config, adapter_name)
    set_peft_model_state_dict(ordinary, found.state, adapter_name)
    return ordinary.eval()


@dataclass(frozen=True, slots=True)
class OrdinaryLora:
    """An adapter that plain PEFT loads, and the recompression error of each layer by name."""

    config: LoraConfig
    state: dict[str, Tensor]
    errors: dict[str, float]


def _combine(model: PeftModel, adapter_name: str, rank: int | None) -> OrdinaryLora:
    layers = milora_layers(model, adapter_name)
    state = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    state = without_initial(state)
    updates = {}
    for name, layer in layers.items():
        up, down = (factor.detach() for factor in update_factors(layer, adapter_name))
        updates[name] = up * layer.scaling[adapter_name], down
    return combine_updates(state, lora_config(model, adapter_name), updates, rank)


def combine_updates(
    state: dict[str, Tensor], config: LoraConfig, updates: dict[str, tuple[Tensor, Tensor]], rank: int | None
) -> OrdinaryLora:
    """Return ΔW = up·down of each layer as one ordinary LoRA, with the other tensors of the adapter's `state`.

    `up` is `(out, r)` and includes the scaling, `down` is `(r, in)`. See `save_milora_as_lora` for `rank`.

    Raises:
        MiloraError: `rank` is out of range.
    """
    exact_rank = max(up.shape[1] for up, _ in updates.values())
    if rank is not None and not 1 <= rank <= exact_rank:
        raise MiloraError(f"rank={rank} is outside 1 … {exact_rank}", f"rank {exact_rank} is exact")
    written_rank = rank or exact_rank
    errors: dict[str, float] = {}
    for name, (up, down) in updates.items():
        errors[name] = 0.0
        if up.shape[1] > written_rank:
            up, down, errors[name] = _compress(up, down, written_rank)
        missing = written_rank - up.shape[1]
        state[f"{name}.lora_B.weight"] = torch.nn.functional.pad(up, (0, missing)).cpu().contiguous()
        state[f"{name}.lora_A.weight"] = torch.nn.functional.pad(down, (0, 0, 0, missing)).cpu().contiguous()
    config = _ordinary(config)
    config.r = config.lora_alpha = written_rank
    config.use_rslora, config.rank_pattern, config.alpha_pattern = False, {}, {}
    return OrdinaryLora(config, state, errors)


def write_lora(path: Path, found: OrdinaryLora) -> ExportReport:
    """Write an ordinary LoRA in PEFT's layout; its files appear once all of them are written."""
    _write_adapter(path, found.state, found.config)
    return ExportReport(path, found.config.r, found.errors)


def save_residual_pair(path: str | Path, model: PeftModel, *, adapter_name: str = "default") -> None:
    """Write the paper's form: the residual model W − s·B₀A₀ in `path`, and (A, B) as a LoRA on it in `path`/adapter.

    The model is consumed: its weights are the residual ones afterwards. Load it in float32 if rounding matters.

    Raises:
        MiloraError: the adapter was not initialized by milora.
    """
    layers = milora_layers(model, adapter_name)
    state = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    state = without_initial(state)
    config = _ordinary(lora_config(model, adapter_name))
    config.base_model_name_or_path = str(path)
    _write_adapter(Path(path) / "adapter", state, config)
    for layer in layers.values():
        trained_factors(layer, adapter_name)[1].data.zero_()  # merging s·B A = 0 leaves W_p
    with filling(Path(path)) as folder:
        model.merge_and_unload().save_pretrained(folder)


def _compress(up: Tensor, down: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    dtype = up.dtype
    Q_up, R_up = torch.linalg.qr(up.double())
    Q_down, R_down = torch.linalg.qr(down.double().T)
    U, S, Vh = torch.linalg.svd(R_up @ R_down.T)
    root = S[:rank].sqrt()
    norm = torch.linalg.norm(S)
    error = (torch.linalg.norm(S[rank:]) / norm).item() if norm > 0 else 0.0
    return ((Q_up @ U[:, :rank]) * root).to(dtype), (root[:, None] * Vh[:rank] @ Q_down.T).to(dtype), error


def _ordinary(config: LoraConfig) -> LoraConfig:
    """Return a copy of the adapter's config that plain PEFT can load."""
    config = make_ordinary_config(config)
    config.inference_mode = True
    return config


def _write_adapter(path: Path, state: dict[str, Tensor], config: LoraConfig) -> None:
    with filling(path) as folder:
        save_file(state, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        config.save_pretrained(str(folder))
