"""How far training changed a model: ‖ΔW‖ over all its layers."""

import copy
import math
from typing import cast

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import nn

from milora.method.ordinary import square_product
from milora.method.variant.linear import IntactVariant, find_variant, stacked_update
from milora.method.variant.weights import base_weight


@torch.no_grad()
def measure_change(model: PeftModel, adapter_name: str = "default") -> float:
    """Return ‖ΔW‖ = (Σ_layers ‖W_tuned − W‖²_F)^½ over the adapted layers; the model does not change."""
    layers = [part for part in model.modules() if isinstance(part, LoraLayer) and adapter_name in part.r]
    return math.sqrt(sum(_squared_change(layer, adapter_name) for layer in layers))


@torch.no_grad()
def measure_full_change(tuned: nn.Module, base: nn.Module) -> float:
    """Return ‖ΔW‖ = (Σ ‖W_tuned − W‖²_F)^½ over all parameters of two models of the same architecture."""
    pairs = zip(tuned.parameters(), base.parameters(), strict=True)
    return math.sqrt(
        sum(float((after.cpu().double() - before.cpu().double()).square().sum()) for after, before in pairs)
    )


def _squared_change(layer: LoraLayer, adapter_name: str) -> float:
    variant = find_variant(layer, adapter_name)
    if isinstance(variant, IntactVariant):
        up, down = (factor.cpu().double() for factor in stacked_update(layer, adapter_name))
        scaling: float = layer.scaling[adapter_name]
        return scaling**2 * square_product(up, down)
    linear = cast(LoraLinear, layer)  # the layers that do not derive from it have the same methods
    if variant is None:
        return float(linear.get_delta_weight(adapter_name).cpu().double().square().sum())
    # PEFT's own merge covers its other variants. It works on a copy of one layer, because it rounds the base weight.
    merged = copy.deepcopy(linear).float()
    merged.merge(adapter_names=[adapter_name])
    change = base_weight(merged) - base_weight(layer).float()
    return float(change.cpu().double().square().sum())
