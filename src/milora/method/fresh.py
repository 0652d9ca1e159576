"""What an adapter must be before it is initialized: on a device, of a positive scaling, and untrained."""

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from milora.method.errors import MiloraError
from milora.method.variant.config import lora_config
from milora.method.variant.weights import is_offloaded, trained_factors

ZERO_STARTS = (True, "gaussian")  # init_lora_weights with which PEFT starts B at zero
FUSED = ("unsloth", "axolotl")  # their kernels compute W x + s·B A x from A and B alone


def check_fresh(model: PeftModel, adapter_name: str, layers: dict[str, LoraLayer]) -> None:
    """Raise unless initializing these layers of an adapter loses nothing, and has an effect.

    Raises:
        MiloraError: a layer breaks a rule; the message names both.
    """
    starts_at_zero = lora_config(model, adapter_name).init_lora_weights in ZERO_STARTS
    for name, layer in layers.items():
        if layer.scaling[adapter_name] <= 0:
            raise MiloraError(
                f"{name}: the scaling {layer.scaling[adapter_name]:g} is not positive", "set lora_alpha above 0"
            )
        A, B = trained_factors(layer, adapter_name)
        if A.is_meta and is_offloaded(layer):
            continue  # which is where PEFT creates them
        if A.is_meta or B.is_meta:
            raise MiloraError(
                f"{name}: adapter {adapter_name!r} is on the meta device", "add it without low_cpu_mem_usage"
            )
        if starts_at_zero and B.any():
            raise MiloraError(
                f"{name}: adapter {adapter_name!r} is trained already, and the initialization would discard that",
                "initialize before training; to go on from a trained LoRA, merge it into the base first",
            )
    _check_kernels(model)


def _check_kernels(model: nn.Module) -> None:
    """Raise if a library has replaced a forward pass of the model by a kernel that reads A and B alone."""
    for name, module in model.named_modules():
        for value in vars(module).values():
            source = str(getattr(value, "__module__", "")).partition(".")[0]
            if callable(value) and source in FUSED and "lora" in getattr(value, "__name__", ""):
                raise MiloraError(
                    f"{name}: {source}'s fused LoRA kernel reads A and B alone, without −s·B₀A₀",
                    f"turn {source}'s LoRA kernels off, or load the model without {source}",
                )
