"""Fused LoRA layers for scoring, where the overhead of small products dominates."""

from typing import cast

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from transformers import PreTrainedModel

from milora.method.variant.linear import find_variant
from milora.method.variant.weights import base_weight, trained_factors


class WideLinear(nn.Module):
    """y = [W, s·B] [x; A x] + b: an ordinary LoRA layer as one wide product, whose sum is rounded once.

    W is `(out, in)`, A `(r, in)` and B `(out, r)`, all in W's dtype.
    """

    def __init__(self, layer: LoraLinear, adapter_name: str) -> None:
        super().__init__()
        down, up = trained_factors(layer, adapter_name)
        wide = torch.cat([base_weight(layer).data, up.data * layer.scaling[adapter_name]], dim=1)
        self.down = nn.Parameter(down.data, requires_grad=False)
        self.wide = nn.Parameter(wide, requires_grad=False)
        self.bias = cast("nn.Parameter | None", layer.get_base_layer().bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.cat([x, F.linear(x, self.down)], dim=-1), self.wide, self.bias)


def widen(model: PreTrainedModel | PeftModel) -> PreTrainedModel | PeftModel:
    """Return the model with each ordinary LoRA layer on an `nn.Linear` replaced by a `WideLinear`.

    `model` is consumed.
    """
    if not isinstance(model, PeftModel) or type(model.active_peft_config) is not LoraConfig:
        return model
    name = model.active_adapter
    base = cast(PreTrainedModel, model.get_base_model())
    for path, layer in list(base.named_modules()):
        if type(layer) is LoraLinear and _can_be_wide(layer, name):
            base.set_submodule(path, WideLinear(layer, name))
    return base


def _can_be_wide(layer: LoraLinear, adapter_name: str) -> bool:
    base = layer.get_base_layer()
    if type(base) is not nn.Linear or adapter_name not in layer.lora_A or find_variant(layer, adapter_name):
        return False
    if layer.lora_B[adapter_name].bias is not None:
        return False
    return trained_factors(layer, adapter_name)[0].dtype == base.weight.dtype
