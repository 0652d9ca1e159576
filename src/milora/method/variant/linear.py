"""How a PEFT LoRA layer computes with MiLoRA's factors, built on PEFT's `LoraVariant` mechanism.

PEFT calls that mechanism private and prone to change; docs/decisions/0001-intact-form.md says why it is used anyway.
All of PEFT's private API that milora uses is in this package, and tests/test_seams.py asserts it.
"""

from functools import partial
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.tuners.lora.layer import LoraVariant
from torch import Tensor, nn

from milora.method.errors import MiloraError
from milora.method.variant.config import MiloraConfig
from milora.method.variant.product import add_update
from milora.method.variant.weights import (
    base_weight,
    count_matrices,
    decode_description,
    encode_description,
    is_quantized,
    is_transposed,
    multiply_factors,
    place_factors,
    stack_factors,
    storage_of,
    trained_factors,
)

INITIAL_A = "lora_initial_A"  # PEFT saves and loads every tensor of its layers
INITIAL_B = "lora_initial_B"
ORIGIN = "lora_initial_base"  # which weight A₀ and B₀ were made from: its description, as bytes
INITIAL = (INITIAL_A, INITIAL_B, ORIGIN)


class Initial(nn.Module):
    """A₀, B₀, or their origin, of one adapter.

    It is a buffer, which every engine keeps in its checkpoints, and not a parameter, which code that goes by the names
    of parameters would train, cast or copy.
    """

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)


class IntactVariant(LoraVariant):
    """y = W x + s·(B A − B₀ A₀) x, computed as s·[B − B₀, B₀] [A; A − A₀] x with one dropout mask.

    The difference is taken between factors, not between products. It is exactly zero at step 0 in every dtype and
    kernel, and small updates keep their relative accuracy in bf16, where B A x and B₀ A₀ x would cancel.
    """

    def __init__(self, tied: bool) -> None:
        self.tied = tied

    def supports_lora_conversion(self) -> bool:
        return False  # PEFT's own conversion would read s·B A alone

    @staticmethod
    def init(module: LoraLayer, adapter_name: str, config: MiloraConfig, **_: Any) -> None:  # type: ignore[override]
        """Start a second adapter as a copy of the one that the config belongs to."""
        pairs = zip(trained_factors(module, adapter_name), trained_factors(module, config.source), strict=True)
        for copy, original in pairs:
            copy.data = original.data.clone()
        for parts in (getattr(module, name) for name in INITIAL):
            parts[adapter_name] = Initial(parts[config.source].weight.clone())

    @staticmethod
    def forward(module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        trained, initial = trained_factors(module, active_adapter), initial_factors(module, active_adapter)
        x = module.lora_dropout[active_adapter](x)
        return add_update(result, x, *trained, *initial, scaling=module.scaling[active_adapter])

    def delta(self, module: LoraLayer, adapter_name: str) -> Tensor:
        up, down = stacked_update(module, adapter_name)
        update = multiply_factors(up, down, module.scaling[adapter_name], is_transposed(module))
        return update.reshape(base_weight(module).shape)

    # PEFT declares these two as static, but calls them on the instance.
    def merge_safe(  # type: ignore[override]
        self, module: LoraLayer, active_adapter: str, orig_weight: Tensor
    ) -> Tensor:
        if self.tied:
            raise MiloraError(
                "the layer's weight is tied to another (tie_word_embeddings): merging would change both",
                "export as LoRA, or untie the weights before training",
            )
        if is_quantized(base_weight(module)):
            raise MiloraError(
                "merging into a quantized weight would round the update away",
                "export as LoRA and merge it into the full-precision base",
            )
        # Subtracting the update again would not restore the same bits; the copy does.
        module._cache_store(_stash(active_adapter), orig_weight.detach().to("cpu", copy=True))
        return (orig_weight + self.delta(module, active_adapter)).to(orig_weight.dtype)

    def merge_unsafe(  # type: ignore[override]
        self, module: LoraLayer, active_adapter: str, orig_weight: Tensor
    ) -> None:
        orig_weight.data = self.merge_safe(module, active_adapter, orig_weight.data)

    @staticmethod
    def unmerge(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        stashed: Tensor = module._cache_pop(_stash(active_adapter))
        return stashed.to(orig_weight.device)


def find_variant(layer: LoraLayer, adapter_name: str) -> LoraVariant | None:
    """Return what PEFT computes an adapter of a layer with; None for an ordinary LoRA."""
    return layer.lora_variant.get(adapter_name)


def attach_factors(
    module: LoraLinear | ParamWrapper, adapter_name: str, A: Tensor, B: Tensor, *, origin: str, tied: bool
) -> None:
    """Start `adapter_name` of a LoRA layer at A `(r, in)` and B `(out, r)`; the layer's output does not change.

    `origin` describes the weight that they were made from; see `describe_base`.
    """
    if not hasattr(module, INITIAL_A):
        for part in INITIAL:
            setattr(module, part, nn.ModuleDict())
        module.other_param_names = (*module.other_param_names, *INITIAL)  # delete_adapter deletes these
        module.register_load_state_dict_pre_hook(_refuse_other_factors)  # type: ignore[no-untyped-call]
        if not isinstance(module, ParamWrapper):  # which takes no variant
            # A partial, because deepcopy follows its arguments.
            module.resolve_lora_variant = partial(resolve_variant, module)  # type: ignore[method-assign]
    if trained_factors(module, adapter_name)[0].is_meta:  # PEFT puts them where an offloaded weight is
        place_factors(module, adapter_name)
    if is_quantized(base_weight(module)):
        # TRL rounds the trained factors of a quantized model to bf16; the initial ones must then be the same numbers.
        A, B = A.bfloat16(), B.bfloat16()
    weights = trained_factors(module, adapter_name)
    for weight, initial, factor in zip(weights, (INITIAL_A, INITIAL_B), (A, B), strict=True):
        weight.data = factor.to(weight.device, weight.dtype, copy=True).contiguous()
        getattr(module, initial)[adapter_name] = Initial(weight.data.clone())
    getattr(module, ORIGIN)[adapter_name] = Initial(encode_description(origin))
    module.lora_variant[adapter_name] = IntactVariant(tied)


def resolve_variant(module: LoraLayer, *, config: LoraConfig, **options: Any) -> LoraVariant | None:
    """Return what PEFT computes an adapter with that is added to an initialized layer.

    Raises:
        MiloraError: the config belongs to a MiLoRA adapter that the layer does not have.
    """
    if not isinstance(config, MiloraConfig):
        return type(module).resolve_lora_variant(module, config=config, **options)
    original = find_variant(module, config.source)
    if not isinstance(original, IntactVariant):
        raise MiloraError(
            f"the config is that of the MiLoRA adapter {config.source!r}, which this model does not have",
            "pass a LoraConfig, and call initialize_lora_milora_weights with its adapter_name",
        )
    return type(original)(original.tied)


def _refuse_other_factors(module: LoraLinear, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Raise if A and B would be loaded without the A₀ and B₀ that they started from, or on another base."""
    for adapter_name, variant in module.lora_variant.items():
        trained, initial, origin = (f"{prefix}{part}.{adapter_name}.weight" for part in ("lora_A", INITIAL_A, ORIGIN))
        if not isinstance(variant, IntactVariant):
            continue
        if trained in state and initial not in state:
            raise MiloraError(
                f"{prefix.rstrip('.')}: an ordinary LoRA would be loaded over the MiLoRA adapter {adapter_name!r}",
                "load it under another adapter name",
            )
        if origin in state:
            loaded = decode_description(state[origin])
            own = decode_description(getattr(module, ORIGIN)[adapter_name].weight)
            if loaded != own and storage_of(loaded) == storage_of(own):
                raise MiloraError(
                    f"{prefix.rstrip('.')}: the loaded adapter {adapter_name!r} was made from another base model",
                    "load the base model that training started from",
                )


def initial_factors(module: LoraLayer, adapter_name: str) -> tuple[Tensor, Tensor]:
    """Return A₀ `(r, in)` and B₀ `(out, r)` of an initialized layer."""
    return getattr(module, INITIAL_A)[adapter_name].weight, getattr(module, INITIAL_B)[adapter_name].weight


def without_initial(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return an adapter's state dict without A₀, B₀ and their origin."""
    return {key: tensor for key, tensor in state.items() if not any(f".{part}." in key for part in INITIAL)}


def stacked_update(module: LoraLayer, adapter_name: str) -> tuple[Tensor, Tensor]:
    """Return `[B − B₀, B₀]` and `[A; A − A₀]`, whose product is B A − B₀ A₀, for each of the E matrices of a layer.

    They are `(E, out, 2r)` and `(E, 2r, in)`; of an ordinary LoRA they are B and A, `(E, out, r)` and `(E, r, in)`.
    """
    matrices = count_matrices(module)
    A, B = stack_factors(*trained_factors(module, adapter_name), matrices)
    if not isinstance(find_variant(module, adapter_name), IntactVariant):
        return B, A
    A0, B0 = stack_factors(*initial_factors(module, adapter_name), matrices)
    return join_factors(A, B, A0.to(A.dtype), B0.to(B.dtype))


def join_factors(A: Tensor, B: Tensor, A0: Tensor, B0: Tensor) -> tuple[Tensor, Tensor]:
    """Return `[B − B₀, B₀]` and `[A; A − A₀]`, of one matrix or of a stack."""
    return torch.cat([B - B0, B0], dim=-1), torch.cat([A, A - A0], dim=-2)


def _stash(adapter_name: str) -> str:
    return f"{adapter_name}-milora-base-weight"
