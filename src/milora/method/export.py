"""Exports a trained adapter to formats that other tools load: an ordinary LoRA, or a residual model and adapter."""

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor, nn

from milora.method.errors import MiloraError, MiloraWarning
from milora.method.files import filling, read_json, write_json
from milora.method.layers import milora_layers
from milora.method.ordinary import OrdinaryFactors, describe_ordinary, keep_known, pack_updates
from milora.method.saving import check_replaceable, find_others, remove_wrappers, save_as_peft, unwrap
from milora.method.unsupported import adapter_layers, is_decomposable
from milora.method.variant.config import lora_config, make_ordinary_config
from milora.method.variant.linear import stacked_update, without_initial
from milora.method.variant.weights import base_weight, trained_factors

LARGEST_SERVED = 512  # the largest --max-lora-rank of vLLM 0.26


@dataclass(frozen=True, slots=True)
class ExportReport:
    """Where a LoRA was written, its rank and dtype, and what others cannot load of it, as sentences.

    Attributes:
        errors: ‖ΔW − ΔW_written‖/‖ΔW‖ (Frobenius) of each layer by name, by recompression and rounding.
    """

    path: Path
    rank: int
    dtype: torch.dtype
    errors: dict[str, float] = field(repr=False)
    warnings: list[str] = field(default_factory=list)

    @property
    def largest_error(self) -> float:
        return max(self.errors.values())


def save_milora_as_lora(
    path: str | Path,
    model: nn.Module,
    *,
    adapter_name: str = "default",
    rank: int | None = None,
    dtype: torch.dtype | None = None,
) -> ExportReport:
    """Write a MiLoRA adapter as one ordinary LoRA for the untouched base, loadable by PEFT, vLLM and llama.cpp.

        ΔW = s·(B A − B₀ A₀) = s·[B − B₀, B₀] [A; A − A₀]        rank 2r, exact

    It is what PEFT's `save_pretrained` writes, with other factors. The scaling is folded into B (lora_alpha = r), and
    smaller ranks of a rank pattern are padded with zeros: readers need not support patterns or rsLoRA.

    Args:
        path: the folder to write to.
        model: the trained PeftModel, also as torch.compile, DDP or accelerate have wrapped it.
        adapter_name: the adapter to export.
        rank: recompress to this rank by QR of both factors and an SVD of the 2r × 2r core, in float64. The result is
            the best approximation of that rank (Eckart–Young), and the report contains its error.
        dtype: the dtype of the factors. None is that of the base where ΔW then changes by less than 0.4 %, as servers
            cast it anyway, and else the one that they were trained in; the report says which.

    Raises:
        MiloraError: the adapter was not initialized by milora, `rank` is outside 1 … 2r, a factor overflows in `dtype`,
            or `path` contains a raw MiLoRA adapter, which would be lost.
    """
    model, path = unwrap(model), Path(path)
    check_replaceable(path)
    found = _pack_layers(model, adapter_name, rank, dtype)
    with filling(path) as folder:
        beside = save_as_peft(folder, path, model, adapter_name, _replace_factors(model, adapter_name, found))
        write_json(folder / CONFIG_NAME, describe_ordinary(read_json(folder / CONFIG_NAME), found.rank))
    return _report(path, found, beside)


def replace_by_lora(model: PeftModel, adapter_name: str = "default") -> PeftModel:
    """Return the base with the ordinary LoRA that `save_milora_as_lora` would write, in eval mode.

    `model` is consumed.

    Raises:
        MiloraError: the adapter was not initialized by milora.
    """
    dtype = trained_factors(next(iter(milora_layers(model, adapter_name).values())), adapter_name)[0].dtype
    found = _pack_layers(model, adapter_name, None, dtype)
    state = get_peft_model_state_dict(
        model, _replace_factors(model, adapter_name, found), adapter_name, save_embedding_layers=False
    )
    config = make_ordinary_config(lora_config(model, adapter_name))
    config.r = config.lora_alpha = found.rank
    config.use_rslora, config.rank_pattern, config.alpha_pattern = False, {}, {}
    ordinary = PeftModel(model.unload(), config, adapter_name)
    set_peft_model_state_dict(ordinary, state, adapter_name)
    return ordinary.eval()


def write_lora(path: Path, state: dict[str, Tensor], config: dict[str, Any], found: OrdinaryFactors) -> ExportReport:
    """Write factors for the layers of an adapter's `state` and `config`, as they are in its files.

    Raises:
        MiloraError: `path` contains a raw MiLoRA adapter.
    """
    check_replaceable(path)
    for name, (A, B) in found.factors.items():
        state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"] = A, B
    with filling(path) as folder:
        save_file(state, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        write_json(folder / CONFIG_NAME, describe_ordinary(config, found.rank))
    return _report(path, found, find_others(state))


def save_residual_pair(path: str | Path, model: nn.Module, *, adapter_name: str = "default") -> None:
    """Write the paper's form: the residual model W − s·B₀A₀ in `path`, and (A, B) as a LoRA on it in `path`/adapter.

    The model is consumed: its weights are the residual ones afterwards. Load it in float32 if rounding matters.

    Raises:
        MiloraError: the adapter was not initialized by milora, or `path` contains a raw MiLoRA adapter.
    """
    model, path = unwrap(model), Path(path)
    for place in (path, path / "adapter"):
        check_replaceable(place)
    layers = milora_layers(model, adapter_name)
    with filling(path / "adapter") as folder:
        save_as_peft(folder, path / "adapter", model, adapter_name, _own_state(model))
        saved = read_json(folder / CONFIG_NAME) | {"init_lora_weights": True, "base_model_name_or_path": str(path)}
        write_json(folder / CONFIG_NAME, keep_known(saved))
    for layer in layers.values():
        trained_factors(layer, adapter_name)[1].data.zero_()  # merging s·B A = 0 leaves W_p
    with filling(path) as folder:
        model.merge_and_unload().save_pretrained(folder)


def _pack_layers(model: PeftModel, adapter_name: str, rank: int | None, dtype: torch.dtype | None) -> OrdinaryFactors:
    layers = milora_layers(model, adapter_name)
    updates = {}
    for name, layer in adapter_layers(model, adapter_name).items():
        if is_decomposable(layer):
            up, down = stacked_update(layer, adapter_name)
            updates[name] = up * layer.scaling[adapter_name], down
    stored = {base_weight(layer).dtype for layer in layers.values()}
    base = stored.pop() if len(stored) == 1 else None
    usable = base is not None and base.is_floating_point and base.itemsize > 1
    return pack_updates(updates, rank, dtype, base if usable else None)


def _replace_factors(model: PeftModel, adapter_name: str, found: OrdinaryFactors) -> dict[str, Tensor]:
    """Return the model's state by its own names, with other factors."""
    state = _own_state(model)
    for name, (A, B) in found.factors.items():
        for part, factor in (("lora_A", A), ("lora_B", B)):
            state[f"{remove_wrappers(name)}.{part}.{adapter_name}.weight"] = factor
    for name, layer in adapter_layers(model, adapter_name).items():
        if not is_decomposable(layer):
            _widen(state, remove_wrappers(name), adapter_name, layer.scaling[adapter_name], found.rank)
    return state


def _widen(state: dict[str, Tensor], name: str, adapter_name: str, scaling: float, rank: int) -> None:
    """Bring an ordinary LoRA of an embedding or a convolution to the rank and the scaling of the others."""
    for part, dim, factor in (("A", 0, 1.0), ("B", 1, scaling)):
        keys = f"{name}.lora_{part}.{adapter_name}.weight", f"{name}.lora_embedding_{part}.{adapter_name}"
        key = next(key for key in keys if key in state)
        shape = list(state[key].shape)
        shape[dim] = rank - shape[dim]
        if shape[dim] < 0:
            raise MiloraError(f"rank={rank}: {name} is ordinary LoRA of a higher rank", "leave rank out")
        state[key] = torch.cat([state[key] * factor, state[key].new_zeros(shape)], dim)


def _own_state(model: PeftModel) -> dict[str, Tensor]:
    return without_initial({remove_wrappers(key): value for key, value in model.state_dict().items()})


def _report(path: Path, found: OrdinaryFactors, others: list[str]) -> ExportReport:
    said = []
    if others:
        named = others[0].removeprefix("base_model.model.")
        said.append(
            f"the adapter contains {len(others)} whole tensor(s) beside its factors, {named} first: PEFT loads them, "
            "vLLM and llama.cpp do not. Serve what model.merge_and_unload() returns there"
        )
    if found.rank > LARGEST_SERVED:
        said.append(
            f"vLLM serves ranks up to {LARGEST_SERVED}, and this adapter has {found.rank}: recompress it by rank="
        )
    for sentence in said:
        warnings.warn(sentence, MiloraWarning, stacklevel=3)
    return ExportReport(path, found.rank, found.dtype, found.errors, said)
