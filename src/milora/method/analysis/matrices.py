"""Which matrices a model's LoRA layers have, and the update that an adapter makes to each."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor

from milora.method.errors import MiloraError
from milora.method.names import PREFIX
from milora.method.unsupported import adapter_layers, is_decomposable
from milora.method.variant.config import lora_config
from milora.method.variant.linear import IntactVariant, find_variant, stacked_update
from milora.method.variant.weights import matrix_names, read_weight, weight_shape

# The init_lora_weights with which PEFT leaves the base as it is. The others replace W by a residual when they load.
UNTOUCHED = (True, False, "gaussian", "orthogonal", "mica", "eva")


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight `(out, in)` of a model; `read` returns it, a quantized one as it is computed with.

    `module` is the name of the module that applies it, None for an expert's.
    """

    shape: tuple[int, int]
    read: Callable[[], Tensor]
    module: str | None


@dataclass(frozen=True, slots=True)
class Update:
    """ΔW = up·down of a weight: `up` `(out, q)` with the scaling in it, `down` `(q, in)`; `rank` is the adapter's r."""

    up: Tensor
    down: Tensor
    rank: int


def find_matrices(model: PeftModel, adapter_name: str = "default") -> dict[str, Matrix]:
    """Return the weights that an adapter is on, by their names in the base, those of experts one by one."""
    found = {}
    for name, layer in _matrix_layers(model, adapter_name).items():
        base, names = name.removeprefix(PREFIX), matrix_names(name, layer)
        for index, each in enumerate(names):
            module = base if each == name else None
            found[each.removeprefix(PREFIX)] = Matrix(weight_shape(layer), _reader(layer, index), module)
    return found


def find_updates(model: PeftModel, adapter_name: str = "default") -> tuple[dict[str, Update], list[str]]:
    """Return the update of each weight that an adapter is on, and the names of layers whose update is not a product.

    Raises:
        MiloraError: the adapter is not a LoRA, or it does more than to add B A to a weight.
    """
    layers = _matrix_layers(model, adapter_name)
    if not layers:
        raise MiloraError(
            f"the adapter's updates are not products of two factors ({model.peft_config[adapter_name].peft_type})",
            "name a LoRA: that of lora, rslora, loraplus, mica, pissa, olora, lora_ga or milora",
        )
    found = {}
    start = lora_config(model, adapter_name).init_lora_weights
    if start not in UNTOUCHED:
        raise MiloraError(
            f"PEFT replaces the base's weights for init_lora_weights={start!r}: B A is not the update of the original",
            "convert it with save_pretrained(…, path_initial_model_for_weight_conversion=…), and name the result",
        )
    for name, layer in layers.items():
        variant = find_variant(layer, adapter_name)
        if not isinstance(variant, IntactVariant | None):
            raise MiloraError(
                f"{name}: {type(variant).__name__} changes the weight by more than a product of two factors",
                "name an ordinary LoRA or MiLoRA adapter",
            )
        up, down = stacked_update(layer, adapter_name)
        up = up.detach().to(torch.promote_types(up.dtype, torch.float32)) * layer.scaling[adapter_name]
        for each, one_up, one_down in zip(matrix_names(name, layer), up, down.detach(), strict=True):
            found[each.removeprefix(PREFIX)] = Update(one_up, one_down, layer.r[adapter_name])
    others = [name.removeprefix(PREFIX) for name in adapter_layers(model, adapter_name) if name not in layers]
    return found, others


def _matrix_layers(model: PeftModel, adapter_name: str) -> dict[str, LoraLayer]:
    return {name: layer for name, layer in adapter_layers(model, adapter_name).items() if is_decomposable(layer)}


def _reader(layer: LoraLayer, index: int) -> Callable[[], Tensor]:
    return lambda: read_weight(layer, index)


def layer_of(name: str) -> int:
    """Return the number of the layer that a weight is in; -1 if its name has none."""
    number = re.search(r"\.(\d+)\.", name)
    return int(number[1]) if number else -1


def group_by_type(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the names of weights by their last part, in the model's order; experts are of one type."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"\[\d+\]$", "", name).rpartition(".")[2], []).append(name)
    return groups
