"""Which layers of a PeftModel MiLoRA can initialize, and the rules they must meet."""

from collections import Counter
from typing import get_args

from peft import PeftModel
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.utils import PeftType
from torch import Tensor
from torch.distributed.tensor import DTensor

from milora.method.errors import MiloraError
from milora.method.fresh import check_fresh
from milora.method.options import Form, Unsupported
from milora.method.unsupported import adapter_layers, find_unfit, refuse
from milora.method.variant.config import lora_config
from milora.method.variant.linear import IntactVariant, find_variant
from milora.method.variant.residual import has_residual
from milora.method.variant.weights import base_weight, is_offloaded, is_quantized, name_quantizer, trained_factors


def ready_layers(
    model: PeftModel, adapter_name: str, form: Form, unsupported: Unsupported = "error"
) -> dict[str, LoraLayer]:
    """Return the LoRA layers of an adapter by name that are ready to be initialized in the given form.

    Raises:
        MiloraError: a layer breaks a rule; the message names both.
    """
    layers = fitting_layers(model, adapter_name, form, unsupported)
    for name, layer in layers.items():
        weight = base_weight(layer)
        if form == "residual" and is_offloaded(layer):
            raise MiloraError(
                f'{name}: the weight is offloaded, and form="residual" would have to write it back', 'use form="intact"'
            )
        if weight.is_meta and not is_offloaded(layer):
            raise MiloraError(f"{name}: the weight is on the meta device", "load the model's weights first")
        if is_sharded(weight):
            raise MiloraError(
                f"{name}: the weight is already sharded across processes (FSDP, ZeRO-3)",
                "initialize before the engine prepares the model; with ZeRO-3, load it before TrainingArguments exist",
            )
    check_fresh(model, adapter_name, layers)
    return layers


def fitting_layers(
    model: PeftModel, adapter_name: str, form: Form, unsupported: Unsupported = "error"
) -> dict[str, LoraLayer]:
    """Return the same layers as `ready_layers`, of a model that may be on the meta device: only structure is checked.

    Raises:
        MiloraError: a layer breaks a rule; the message names both.
    """
    for name, value, words in (("form", form, Form), ("unsupported", unsupported, Unsupported)):
        if value not in get_args(words):
            raise MiloraError(f"{name}={value!r} is unknown", f"choose one of {', '.join(get_args(words))}")
    _check_lora(model, adapter_name)
    all_layers = adapter_layers(model, adapter_name)
    unfit = find_unfit(all_layers, adapter_name)
    layers = {name: layer for name, layer in all_layers.items() if name not in unfit}
    _check_adapter(model, adapter_name, layers)
    can_leave = bool(layers) and form == "intact"  # residual weights are for an adapter of MiLoRA alone
    if unfit and (unsupported == "error" or not can_leave):
        raise refuse(all_layers, unfit, can_leave=can_leave)
    if not layers:
        raise MiloraError(f"adapter {adapter_name!r} has no linear layer", "check target_modules")
    if form == "residual":
        _check_residual(layers, tied_weights(model))
    return layers


def _check_lora(model: PeftModel, adapter_name: str) -> None:
    if not isinstance(model, PeftModel):
        raise MiloraError(
            f"{type(model).__name__} is not a PeftModel", "call get_peft_model(model, LoraConfig(…)) first"
        )
    if adapter_name not in model.peft_config:
        raise MiloraError(
            f"there is no adapter {adapter_name!r}", f"the model has {', '.join(map(repr, model.peft_config))}"
        )
    peft_type = model.peft_config[adapter_name].peft_type
    if peft_type != PeftType.LORA:
        raise MiloraError(f"adapter {adapter_name!r} is {PeftType(peft_type).value}, not LoRA", "use LoraConfig")
    for name, layer in adapter_layers(model, adapter_name).items():
        _check_readable(name, layer, model, adapter_name)


def _check_readable(name: str, layer: LoraLayer, model: PeftModel, adapter_name: str) -> None:
    quantizer = name_quantizer(layer) if adapter_name in layer.lora_A else None
    if quantizer is None:
        return
    quantization = getattr(model.get_base_model().config, "quantization_config", None)
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    method = getattr(method, "quant_method", method)
    named = f"{getattr(method, 'value', method)} ({quantizer})" if method else quantizer
    raise MiloraError(
        f"{name}: the weight is quantized by {named}; MiLoRA reads full-precision weights and those of bitsandbytes",
        "load a full-precision checkpoint of the model, or quantize that with BitsAndBytesConfig in 4 or 8 bits",
    )


def _check_adapter(model: PeftModel, adapter_name: str, layers: dict[str, LoraLayer]) -> None:
    config = lora_config(model, adapter_name)
    refused = {
        "use_dora=True rescales the whole weight, not an update of it": config.use_dora,
        "lora_bias=True is not part of the decomposition": config.lora_bias,
        f"bias={config.bias!r} trains the biases of the base": config.bias != "none",
        f"init_lora_weights={config.init_lora_weights!r} has already changed the base": config.init_lora_weights
        not in (True, False, "gaussian", "orthogonal"),
    }
    for rule, broken in refused.items():
        if broken:
            raise MiloraError(f"{rule}: MiLoRA does not support it", "leave that option of LoraConfig at its default")
    for name, layer in layers.items():
        variant = find_variant(layer, adapter_name)
        if isinstance(variant, IntactVariant):
            raise MiloraError(
                f"{name}: adapter {adapter_name!r} is already initialized", "start from a fresh get_peft_model"
            )
        if variant is not None:
            raise MiloraError(f"{name}: {type(variant).__name__} cannot be combined with MiLoRA", "use plain LoRA")
        if has_residual(layer):
            raise MiloraError(
                f"{name}: another adapter's residual form has replaced the weight", 'use form="intact" for both'
            )
        if layer.merged:
            raise MiloraError(f"{name}: adapters are merged into the weight", "call model.unmerge_adapter() first")


def _check_residual(layers: dict[str, LoraLayer], tied: set[int]) -> None:
    for name, layer in layers.items():
        weight = base_weight(layer)
        if id(weight) in tied:
            raise MiloraError(
                f'{name}: the weight is tied to another layer\'s, which form="residual" would also change',
                'use form="intact", or take the layer out of target_modules',
            )
        if is_quantized(weight):
            raise MiloraError(
                f'{name}: a quantized weight cannot store W − s·B₀A₀; form="residual" needs full precision',
                'use form="intact"',
            )
        if isinstance(layer, ParamWrapper):
            raise MiloraError(f'{name}: form="residual" does not support experts', 'use form="intact"')
        if len(layer.lora_A) > 1:
            raise MiloraError(
                f'{name}: form="residual" would change the base under {len(layer.lora_A) - 1} other adapter(s)',
                'use form="intact"',
            )


def tied_weights(model: PeftModel) -> set[int]:
    """Return the `id` of each parameter that the model contains more than once."""
    counts = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    return {identity for identity, count in counts.items() if count > 1}


def milora_layers(model: PeftModel, adapter_name: str) -> dict[str, LoraLayer]:
    """Return the layers with an initialized MiLoRA adapter, by name.

    Raises:
        MiloraError: the model has none, or the adapter is sharded.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and isinstance(find_variant(module, adapter_name), IntactVariant)
    }
    if not layers:
        raise MiloraError(
            f"adapter {adapter_name!r} was not initialized by milora",
            "call initialize_lora_milora_weights(model) before training",
        )
    for name, layer in layers.items():
        if is_sharded(trained_factors(layer, adapter_name)[0]):
            raise MiloraError(
                f"{name}: the adapter is sharded across processes (FSDP, ZeRO-3)",
                "save it unsharded, and load that with load_milora in one process",
            )
    return layers


def is_sharded(weight: Tensor) -> bool:
    """Return whether this process has only a shard: under FSDP2, or under ZeRO-3 outside of a forward pass."""
    return isinstance(weight, DTensor) or not weight.numel()
