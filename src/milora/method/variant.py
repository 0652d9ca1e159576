"""How a PEFT LoRA layer computes with MiLoRA's factors: the two forms, built on PEFT's `LoraVariant` mechanism.

PEFT calls that mechanism private and prone to change; docs/decisions/0001-intact-form.md says why it is used anyway.
All of PEFT's private API that milora uses is in this file, and tests/test_seams.py asserts it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import LoraVariant
from peft.utils.integrations import get_bnb_param_type
from torch import Tensor, nn

from milora.method.errors import MiloraError
from milora.method.options import Form

INITIAL_A = "lora_initial_A"  # PEFT saves and loads every tensor with "lora_" in its name
INITIAL_B = "lora_initial_B"


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
    def forward(module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        up, down = update_factors(module, active_adapter)
        x = module.lora_dropout[active_adapter](x)
        update = F.linear(F.linear(x, down), up)
        scaling: float = module.scaling[active_adapter]
        return result + update * scaling

    def delta(self, module: LoraLayer, adapter_name: str) -> Tensor:
        up, down = update_factors(module, adapter_name)
        return _product(up, down, module.scaling[adapter_name], is_transposed(module))

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


class ResidualVariant(IntactVariant):
    """y = W_p x + s·B A x with W_p = W − s·B₀ A₀ stored in place of W (the paper's form)."""

    @staticmethod
    def forward(module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        x = module.lora_dropout[active_adapter](x)
        update: Tensor = module.lora_B[active_adapter](module.lora_A[active_adapter](x))
        scaling: float = module.scaling[active_adapter]
        return result + update * scaling

    def delta(self, module: LoraLayer, adapter_name: str) -> Tensor:
        A, B = trained_factors(module, adapter_name)
        return _product(B, A, module.scaling[adapter_name], is_transposed(module))


def find_variant(layer: LoraLayer, adapter_name: str) -> LoraVariant | None:
    """Return what PEFT computes an adapter of a layer with; None for an ordinary LoRA."""
    return layer.lora_variant.get(adapter_name)


def has_residual(layer: LoraLayer) -> bool:
    """Return whether an adapter in residual form has replaced the layer's weight."""
    return any(isinstance(variant, ResidualVariant) for variant in layer.lora_variant.values())


def base_weight(layer: LoraLayer) -> nn.Parameter:
    """Return the base weight of a LoRA layer as it is stored."""
    return cast(nn.Parameter, layer.get_base_layer().weight)


def weight_shape(layer: LoraLayer) -> tuple[int, int]:
    """Return `(out, in)` of the base weight of a LoRA layer."""
    assert layer.out_features is not None and layer.in_features is not None
    return layer.out_features, layer.in_features


def is_transposed(layer: LoraLayer) -> bool:
    """Return whether the base weight is stored as `(in, out)`, as in Conv1D."""
    # bitsandbytes' LoRA layers do not derive from PEFT's Linear, but have this attribute too.
    return bool(cast(LoraLinear, layer).fan_in_fan_out)


def is_quantized(weight: nn.Parameter) -> bool:
    """Return whether bitsandbytes stores the weight in 4 or 8 bits."""
    return bool(get_bnb_param_type(weight))


def trained_factors(layer: LoraLayer, adapter_name: str) -> tuple[nn.Parameter, nn.Parameter]:
    """Return A `(r, in)` and B `(out, r)` of a LoRA layer."""
    A, B = layer.lora_A[adapter_name].weight, layer.lora_B[adapter_name].weight
    return cast(nn.Parameter, A), cast(nn.Parameter, B)


def attach_factors(module: LoraLinear, adapter_name: str, A: Tensor, B: Tensor, *, form: Form, tied: bool) -> float:
    """Start `adapter_name` of a LoRA layer at A `(r, in)` and B `(out, r)`; the layer's output does not change.

    Returns the rounding error of a residual weight, ‖round(W_p) − W_p‖ / ‖s·B₀ A₀‖ in Frobenius norms; 0 for intact.
    """
    if not hasattr(module, INITIAL_A):
        for initial in (INITIAL_A, INITIAL_B):
            setattr(module, initial, nn.ModuleDict())
        module.other_param_names = (*module.other_param_names, INITIAL_A, INITIAL_B)  # delete_adapter deletes these
        module.register_load_state_dict_pre_hook(_refuse_other_factors)  # type: ignore[no-untyped-call]
    if is_quantized(base_weight(module)):
        # TRL rounds the trained factors of a quantized model to bf16; the initial ones must then be the same numbers.
        A, B = A.bfloat16(), B.bfloat16()
    weights = trained_factors(module, adapter_name)
    for weight, initial, factor in zip(weights, (INITIAL_A, INITIAL_B), (A, B), strict=True):
        weight.data = factor.to(weight.device, weight.dtype, copy=True).contiguous()
        holder = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        holder.weight = nn.Parameter(weight.data.clone(), requires_grad=False)
        getattr(module, initial)[adapter_name] = holder
    if form == "intact":
        module.lora_variant[adapter_name] = IntactVariant(tied)
        return 0.0
    module.lora_variant[adapter_name] = ResidualVariant(tied)
    return _subtract_initial_product(module, adapter_name)


_keeping = ContextVar("keeping", default=False)


@contextmanager
def keep_initial_factors() -> Iterator[None]:
    """Allow A and B to be loaded alone inside the context, on top of the existing A₀ and B₀.

    DeepSpeed leaves frozen tensors out of its checkpoints: a run that resumes from one has loaded A₀ and B₀ before.
    """
    token = _keeping.set(True)
    try:
        yield
    finally:
        _keeping.reset(token)


def _refuse_other_factors(module: LoraLinear, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Raise if A and B would be loaded without the A₀ and B₀ that they started from."""
    if _keeping.get():
        return
    for adapter_name, variant in module.lora_variant.items():
        trained, initial = (f"{prefix}{part}.{adapter_name}.weight" for part in ("lora_A", INITIAL_A))
        if isinstance(variant, IntactVariant) and trained in state and initial not in state:
            raise MiloraError(
                f"{prefix.rstrip('.')}: an ordinary LoRA would be loaded over the MiLoRA adapter {adapter_name!r}",
                "load it under another adapter name",
            )


def update_factors(module: LoraLayer, adapter_name: str) -> tuple[Tensor, Tensor]:
    """Return `[B − B₀, B₀]` `(out, 2r)` and `[A; A − A₀]` `(2r, in)`, whose product is B A − B₀ A₀."""
    A, B = trained_factors(module, adapter_name)
    # Detached: PEFT may reassign parameters as trainable when it casts them.
    A0 = getattr(module, INITIAL_A)[adapter_name].weight.detach().to(A.dtype)
    B0 = getattr(module, INITIAL_B)[adapter_name].weight.detach().to(B.dtype)
    return join_factors(A, B, A0, B0)


def join_factors(A: Tensor, B: Tensor, A0: Tensor, B0: Tensor) -> tuple[Tensor, Tensor]:
    """Return `[B − B₀, B₀]` and `[A; A − A₀]`."""
    return torch.cat([B - B0, B0], dim=1), torch.cat([A, A - A0])


def read_weight(module: LoraLayer) -> Tensor:
    """Return the base weight of a LoRA layer as `(out, in)`, whatever its storage.

    A quantized weight is read by passing the identity through its layer, so that it is what the layer computes.

    Raises:
        MiloraError: bitsandbytes has repacked a 4-bit weight, as it does on a CPU at the first forward pass in eval
            mode; the weight then gives other results outside of eval mode.
    """
    layer, weight = module.get_base_layer(), base_weight(module)
    if not is_quantized(weight):
        return weight.detach().T if is_transposed(module) else weight.detach()
    if getattr(getattr(weight, "quant_state", None), "packing_format_for_cpu", False):
        raise MiloraError(
            "bitsandbytes has repacked the weight for inference", "initialize before the first forward pass"
        )
    was_training = layer.training
    with torch.no_grad():
        image: Tensor = layer.train()(torch.eye(weight_shape(module)[1], device=weight.device))
    layer.train(was_training)
    bias = cast("Tensor | None", layer.bias)
    return (image if bias is None else image - bias).T


def _product(up: Tensor, down: Tensor, scaling: float, transposed: bool) -> Tensor:
    """Return s·up·down in the layout of the stored base weight, in float32 or wider."""
    dtype = torch.promote_types(up.dtype, torch.float32)
    product = (up.detach().to(dtype) @ down.detach().to(dtype)) * scaling
    return product.T if transposed else product


def _subtract_initial_product(module: LoraLinear, adapter_name: str) -> float:
    # At this point A and B are still A₀ and B₀, cast to the dtype in which they are stored.
    weight, (A, B) = base_weight(module), trained_factors(module, adapter_name)
    scaling: float = module.scaling[adapter_name]
    weight.data, rounding_error = subtract_product(weight.data, A, B, scaling, is_transposed(module))
    _guard_residual(module, adapter_name)
    return rounding_error


def subtract_product(weight: Tensor, A: Tensor, B: Tensor, scaling: float, transposed: bool) -> tuple[Tensor, float]:
    """Return W − s·B A in the dtype and layout of the stored `weight`, and what rounding to that dtype loses.

    `weight` is `(out, in)`, or `(in, out)` if `transposed`. A `(r, in)` and B `(out, r)` are in the dtype in which they
    are stored. The rounding error is ‖round(W_p) − W_p‖ / ‖s·B A‖ in Frobenius norms.
    """
    subtrahend = _product(B, A, scaling, transposed)
    exact = weight.to(torch.promote_types(weight.dtype, subtrahend.dtype)) - subtrahend
    rounded = exact.to(weight.dtype)
    lost, norm = torch.linalg.norm(rounded.to(exact.dtype) - exact), torch.linalg.norm(subtrahend)
    return rounded, (lost / norm).item() if norm > 0 else 0.0


def _guard_residual(module: LoraLinear, adapter_name: str) -> None:
    """Make every use of W_p without its adapter an error."""

    def refuse_inactive(layer: LoraLinear, _: Any, kwargs: dict[str, Any], __: Any) -> None:
        used = set(kwargs.get("adapter_names") or [adapter_name])
        if layer.disable_adapters or adapter_name not in layer.active_adapters or used != {adapter_name}:
            raise _residual_alone(adapter_name)

    # After the forward pass: only then are the adapter names of a mixed batch among its arguments.
    module.register_forward_hook(refuse_inactive, with_kwargs=True)
    # PEFT's protocol for layers that unload themselves. A partial, because deepcopy follows its arguments.
    unload = partial(_unload_residual, module, adapter_name)
    module.unload_and_optionally_merge_module = unload  # type: ignore[assignment]  # not only tensors and modules


def _unload_residual(
    module: LoraLinear, adapter_name: str, *, merge: bool, safe_merge: bool, adapter_names: list[str] | None
) -> nn.Module:
    if not merge or adapter_name not in (adapter_names or module.active_adapters):
        raise _residual_alone(adapter_name)
    module.merge(safe_merge=safe_merge, adapter_names=adapter_names)
    return module.get_base_layer()


def _residual_alone(adapter_name: str) -> MiloraError:
    return MiloraError(
        f'form="residual" replaced the weights by W − s·B₀A₀, which cannot be used without adapter {adapter_name!r}',
        'keep the adapter active, or initialize with form="intact", where disable_adapter() is the base model',
    )


def _stash(adapter_name: str) -> str:
    return f"{adapter_name}-milora-base-weight"
