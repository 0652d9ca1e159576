"""The paper's form of a layer: W − s·B₀A₀ is stored in place of W, and is never used without its adapter."""

from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from milora.method.errors import MiloraError
from milora.method.variant.linear import IntactVariant, attach_factors
from milora.method.variant.weights import base_weight, is_transposed, multiply_factors, trained_factors


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
        return multiply_factors(B, A, module.scaling[adapter_name], is_transposed(module))


def has_residual(layer: LoraLayer) -> bool:
    """Return whether an adapter in residual form has replaced the layer's weight."""
    return any(isinstance(variant, ResidualVariant) for variant in layer.lora_variant.values())


def attach_residual(module: LoraLinear, adapter_name: str, A: Tensor, B: Tensor, *, origin: str, tied: bool) -> float:
    """Start `adapter_name` of a LoRA layer at A and B, and replace W by W − s·B₀A₀; see `attach_factors`.

    Returns the rounding error ‖round(W_p) − W_p‖ / ‖s·B₀ A₀‖ in Frobenius norms.
    """
    attach_factors(module, adapter_name, A, B, origin=origin, tied=tied)
    module.lora_variant[adapter_name] = ResidualVariant(tied)
    # At this point A and B are still A₀ and B₀, cast to the dtype in which they are stored.
    weight, (A0, B0) = base_weight(module), trained_factors(module, adapter_name)
    scaling: float = module.scaling[adapter_name]
    weight.data, rounding_error = subtract_product(weight.data, A0, B0, scaling, is_transposed(module))
    # After the forward pass: only then are the adapter names of a mixed batch among its arguments.
    module.register_forward_hook(_refuse_inactive, with_kwargs=True)
    # PEFT's protocol for layers that unload themselves. A partial, because deepcopy follows its arguments.
    module.unload_and_optionally_merge_module = partial(_unload, module)  # type: ignore[assignment]  # not only tensors
    return rounding_error


def subtract_product(weight: Tensor, A: Tensor, B: Tensor, scaling: float, transposed: bool) -> tuple[Tensor, float]:
    """Return W − s·B A in the dtype and layout of the stored `weight`, and what rounding to that dtype loses.

    `weight` is `(out, in)`, or `(in, out)` if `transposed`. A `(r, in)` and B `(out, r)` are in the dtype in which they
    are stored. The rounding error is ‖round(W_p) − W_p‖ / ‖s·B A‖ in Frobenius norms.
    """
    subtrahend = multiply_factors(B, A, scaling, transposed)
    exact = weight.to(torch.promote_types(weight.dtype, subtrahend.dtype)) - subtrahend
    rounded = exact.to(weight.dtype)
    lost, norm = torch.linalg.norm(rounded.to(exact.dtype) - exact), torch.linalg.norm(subtrahend)
    return rounded, (lost / norm).item() if norm > 0 else 0.0


def _refuse_inactive(layer: LoraLinear, _: Any, kwargs: dict[str, Any], __: Any) -> None:
    """Raise if W_p was used without exactly one of the adapters that complete it."""
    rows = kwargs.get("adapter_names")
    used = [{name} for name in rows] if rows else [set(layer.active_adapters)]
    if layer.disable_adapters or any(len(_residual_among(layer, names)) != 1 for names in used):
        raise _residual_alone()


def _unload(module: LoraLinear, *, merge: bool, safe_merge: bool, adapter_names: list[str] | None) -> nn.Module:
    if not merge or len(_residual_among(module, set(adapter_names or module.active_adapters))) != 1:
        raise _residual_alone()
    module.merge(safe_merge=safe_merge, adapter_names=adapter_names)
    return module.get_base_layer()


def _residual_among(layer: LoraLayer, names: set[str]) -> set[str]:
    return {name for name in names if isinstance(layer.lora_variant.get(name), ResidualVariant)}


def _residual_alone() -> MiloraError:
    return MiloraError(
        'form="residual" replaced the weights by W − s·B₀A₀, which cannot be used without their adapter',
        'keep the adapter active, or initialize with form="intact", where disable_adapter() is the base model',
    )
