"""MiLoRA on the experts of a mixture: on PEFT's LoRA of a parameter, which takes no `LoraVariant`."""

from typing import Any

from peft import LoraConfig
from peft.tuners.lora import ParamWrapper as PeftParamWrapper
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor

from milora.method.variant.config import MiloraConfig
from milora.method.variant.linear import (
    IntactVariant,
    attach_factors,
    find_variant,
    resolve_variant,
    stacked_update,
)
from milora.method.variant.weights import is_transposed


class ParamWrapper(PeftParamWrapper):  # PEFT finds the wrapper for a second adapter by the name of its class
    """During the forward pass each matrix of the parameter is W + s·[B − B₀, B₀] [A; A − A₀], with its own factors.

    At step 0 the products are exactly zero, and the sum is W bit for bit. PEFT's own methods serve ordinary adapters.
    """

    def update_layer(self, adapter_name: str, r: int, lora_alpha: int, config: LoraConfig, **options: Any) -> None:
        variant = resolve_variant(self, config=config)
        super().update_layer(adapter_name, r, lora_alpha, config, **options)
        if isinstance(variant, IntactVariant) and isinstance(config, MiloraConfig):
            self.lora_variant[adapter_name] = variant
            variant.init(self, adapter_name, config)

    def get_delta_factors(self, adapter_name: str) -> tuple[Tensor, Tensor, float]:
        if not self._is_intact(adapter_name):
            ordinary: tuple[Tensor, Tensor, float] = super().get_delta_factors(adapter_name)  # type: ignore[no-untyped-call]
            return ordinary
        left, right = stacked_update(self, adapter_name)
        if is_transposed(self):
            left, right = right.mT, left.mT
        dtype = self.get_param().dtype  # type: ignore[no-untyped-call]
        return left.to(dtype), right.to(dtype), self.scaling[adapter_name]

    def get_delta_weight(self, adapter_name: str, *args: Any, **options: Any) -> Tensor:
        """Return the sum's second term; PEFT needs it if several adapters are active, or for a single matrix."""
        if not self._is_intact(adapter_name):
            ordinary: Tensor = super().get_delta_weight(adapter_name, *args, **options)  # type: ignore[no-untyped-call]
            return ordinary
        left, right, scaling = self.get_delta_factors(adapter_name)
        return ((left @ right) * scaling).reshape(self.get_param().shape)  # type: ignore[no-untyped-call]

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        for name in check_adapters_to_merge(self, adapter_names):
            variant = find_variant(self, name)
            if not isinstance(variant, IntactVariant):
                super().merge(safe_merge, [name])
                continue
            param = self.get_param()  # type: ignore[no-untyped-call]
            merged = variant.merge_safe(self, name, param.data)
            if safe_merge and not merged.isfinite().all():
                raise ValueError(f"NaNs detected in the merged weights. The adapter {name} seems to be broken")
            param.data = merged
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        merged = self.merged_adapters
        intact = [place for place, name in enumerate(merged) if self._is_intact(name)]
        for place in reversed(intact):
            param = self.get_param()  # type: ignore[no-untyped-call]
            # What was merged after this adapter is undone with it.
            param.data = IntactVariant.unmerge(self, merged[place], param.data)
            del merged[place:]
        if merged or not intact:
            super().unmerge()

    def _is_intact(self, adapter_name: str) -> bool:
        return isinstance(find_variant(self, adapter_name), IntactVariant)


def attach_experts(
    module: PeftParamWrapper, adapter_name: str, A: Tensor, B: Tensor, *, origin: str, tied: bool
) -> None:
    """Start `adapter_name` of PEFT's LoRA of a parameter at A and B, in PEFT's layout; its output does not change."""
    module.__class__ = ParamWrapper
    attach_factors(module, adapter_name, A, B, origin=origin, tied=tied)
