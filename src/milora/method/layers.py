"""Which layers of a PeftModel can carry MiLoRA, and the rules they must keep."""

from collections import Counter
from typing import get_args

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import LoraLayer
from peft.utils import PeftType
from peft.utils.integrations import get_bnb_param_type
from torch import Tensor
from torch.distributed.tensor import DTensor

from milora.method.errors import MiloraError
from milora.method.options import Form
from milora.method.variant import IntactVariant, ResidualVariant, read_weight

MARK = "milora"  # init_lora_weights of an adapter that needs its initial factors: plain PEFT refuses the name
# The same, of factors that have no relation to the weight (LoRA-GA's): nothing in them tells a wrong base.
UNCERTIFIED = "milora-uncertified"
MARKS = (MARK, UNCERTIFIED)


def ready_layers(model: PeftModel, adapter_name: str, form: Form) -> dict[str, LoraLinear]:
    """Return an adapter's linear LoRA layers by name, each able to take an exact start in the form `base` now.

    Raises:
        MiloraError: the rule that is broken, the layer that breaks it, and the way out.
    """
    layers = fitting_layers(model, adapter_name, form)
    for name, layer in layers.items():
        weight = layer.get_base_layer().weight
        if weight.is_meta:
            raise MiloraError(f"{name}: the weight is on the meta device", "load the model's weights first")
        if _is_shared_out(weight):
            raise MiloraError(
                f"{name}: the weight is shared out among processes already (FSDP, ZeRO-3)",
                "initialise before the engine prepares the model; with ZeRO-3, load it before TrainingArguments exist",
            )
    return layers


def fitting_layers(model: PeftModel, adapter_name: str, form: Form) -> dict[str, LoraLinear]:
    """The same, of a model whose weights may be on the meta device: its structure alone is looked at."""
    layers = _linear_layers(model, adapter_name)
    _check_adapter(model, adapter_name, layers)
    if form not in get_args(Form):
        raise MiloraError(f"form={form!r} is unknown", f"choose one of {', '.join(get_args(Form))}")
    if form == "residual":
        _check_residual(layers, tied_weights(model))
    return layers


def _linear_layers(model: PeftModel, adapter_name: str) -> dict[str, LoraLinear]:
    if not isinstance(model, PeftModel):
        raise MiloraError(f"{type(model).__name__} is no PeftModel", "call get_peft_model(model, LoraConfig(…)) first")
    if adapter_name not in model.peft_config:
        raise MiloraError(
            f"there is no adapter {adapter_name!r}", f"the model has {', '.join(map(repr, model.peft_config))}"
        )
    if model.peft_config[adapter_name].peft_type != PeftType.LORA:
        raise MiloraError(
            f"adapter {adapter_name!r} is {model.peft_config[adapter_name].peft_type.value}, not LoRA", "use LoraConfig"
        )
    layers: dict[str, LoraLinear] = {}
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        kind = type(module).__name__
        if adapter_name in module.lora_A and kind in ("Linear", "Linear4bit", "Linear8bitLt"):
            layers[name] = module
        elif adapter_name in {*module.lora_A, *module.lora_embedding_A}:
            raise MiloraError(
                f"{name}: MiLoRA decomposes linear layers, not lora.{kind}", "take the layer out of target_modules"
            )
    return layers


def _check_adapter(model: PeftModel, adapter_name: str, layers: dict[str, LoraLinear]) -> None:
    config = model.peft_config[adapter_name]
    assert isinstance(config, LoraConfig)
    refused = {
        "use_dora=True rescales the whole weight, not an update of it": config.use_dora,
        "lora_bias=True has no part in the decomposition": config.lora_bias,
        f"bias={config.bias!r} trains the base's own biases": config.bias != "none",
        f"init_lora_weights={config.init_lora_weights!r} has changed the base already": config.init_lora_weights
        not in (True, False, "gaussian", "orthogonal", *MARKS),
    }
    for rule, broken in refused.items():
        if broken:
            raise MiloraError(f"{rule}: not with MiLoRA", "leave that option of LoraConfig at its default")
    if not layers:
        raise MiloraError(f"adapter {adapter_name!r} has no linear layer", "check target_modules")
    for name, layer in layers.items():
        variant = layer.lora_variant.get(adapter_name)
        if isinstance(variant, IntactVariant):
            raise MiloraError(
                f"{name}: adapter {adapter_name!r} is initialised already", "start from a fresh get_peft_model"
            )
        if variant is not None:
            raise MiloraError(f"{name}: {type(variant).__name__} cannot be combined with MiLoRA", "use plain LoRA")
        if any(isinstance(other, ResidualVariant) for other in layer.lora_variant.values()):
            raise MiloraError(
                f"{name}: another adapter's residual form has replaced the weight", 'use form="intact" for both'
            )
        if layer.merged:
            raise MiloraError(f"{name}: adapters are merged into the weight", "call model.unmerge_adapter() first")


def _check_residual(layers: dict[str, LoraLinear], tied: set[int]) -> None:
    for name, layer in layers.items():
        weight = layer.get_base_layer().weight
        if id(weight) in tied:
            raise MiloraError(
                f'{name}: the weight is tied to another layer\'s, which form="residual" would change too',
                'use form="intact", or take the layer out of target_modules',
            )
        if get_bnb_param_type(weight):
            raise MiloraError(
                f'{name}: a quantised weight cannot hold the residual W − s·B₀A₀; form="residual" needs full precision',
                'use form="intact"',
            )
        if len(layer.lora_A) > 1:
            raise MiloraError(
                f'{name}: form="residual" would change the base under {len(layer.lora_A) - 1} other adapter(s)',
                'use form="intact"',
            )


def tied_weights(model: PeftModel) -> set[int]:
    """Return the identities of the parameters that stand in the model more than once."""
    counts = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    return {identity for identity, count in counts.items() if count > 1}


def milora_layers(model: PeftModel, adapter_name: str) -> dict[str, LoraLinear]:
    """Return the layers that carry an initialised MiLoRA adapter, by name.

    Raises:
        MiloraError: there is none.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and isinstance(module.lora_variant.get(adapter_name), IntactVariant)
    }
    if not layers:
        raise MiloraError(
            f"adapter {adapter_name!r} was not initialised by milora",
            "call initialize_lora_milora_weights(model) before training",
        )
    for name, layer in layers.items():
        if _is_shared_out(layer.lora_A[adapter_name].weight):
            raise MiloraError(
                f"{name}: the adapter is shared out among processes (FSDP, ZeRO-3)",
                "save it as a whole, and load that with load_milora on one process",
            )
    return layers


def _is_shared_out(weight: Tensor) -> bool:
    """Whether an engine has left this process a part of it: FSDP2, or ZeRO-3 outside of a forward pass."""
    return isinstance(weight, DTensor) or not weight.numel()


def check_base(name: str, layer: LoraLinear, A: Tensor, B: Tensor) -> None:
    """Raise unless the layer's weight maps each column of B₀ onto the matching row of A₀, as its own components do.

    bᵢᵀ W = cᵢ aᵢ holds for singular directions of W, and for the Q and R of its QR (OLoRA); it fails for those of
    another weight. Measured against what Wᵀ does to a vector on average; rounding the base to bf16 costs 1e-3, another
    base about 1.
    """
    weight = read_weight(layer)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    weight, A, B = weight.to(dtype), A.to(weight.device, dtype), B.to(weight.device, dtype)
    if (B.shape[0], A.shape[1]) != tuple(weight.shape):
        raise _wrong_base(
            name, f"its factors fit a {(B.shape[0], A.shape[1])} weight, this one is {tuple(weight.shape)}"
        )
    image = B.T @ weight
    along = (A * image).sum(1, keepdim=True) / (A * A).sum(1, keepdim=True).clamp_min(torch.finfo(dtype).tiny)
    typical = torch.linalg.norm(weight) / weight.shape[0] ** 0.5 * torch.linalg.norm(B)
    mismatch = torch.linalg.norm(image - along * A)
    if mismatch > 1e-2 * typical:
        raise _wrong_base(name, f"its factors miss this weight by {(mismatch / typical).item():.2g}, of 0.01 allowed")


def _wrong_base(name: str, reason: str) -> MiloraError:
    return MiloraError(
        f"{name}: the initial factors are not of this base model: {reason}",
        "load the base model that base_model_name_or_path names, quantised as it was in training, or use the adapter's "
        "portable export",
    )
