"""How large what an update adds is beside what its weight computes, on real inputs."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from milora.method.analysis.matrices import Update


@torch.no_grad()
def measure_activity(
    base: nn.Module, updates: Mapping[str, Mapping[str, Update]], batches: Iterable[Tensor]
) -> dict[str, dict[str, float]]:
    """Return E‖ΔW h‖² / E‖W h‖² of each module and adapter, over all positions of some text.

    h are the inputs of the module in the base model, and W h is its output without its bias.

    Args:
        base: the model without an adapter.
        updates: the updates of each adapter by module name, by adapter.
        batches: token ids `(rows, length)`, on the device of the model.
    """
    names = dict.fromkeys(name for found in updates.values() for name in found)
    sums = {name: {adapter: 0.0 for adapter in ("", *updates)} for name in names}
    hooks = []
    for name in names:
        module = base.get_submodule(name)
        found = {adapter: found[name] for adapter, found in updates.items() if name in found}
        hooks.append(module.register_forward_hook(_add_squares(found, sums[name])))
    try:
        for batch in batches:
            base(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {
        adapter: {name: sums[name][adapter] / sums[name][""] for name in found if sums[name][""]}
        for adapter, found in updates.items()
    }


def _add_squares(updates: Mapping[str, Update], sums: dict[str, float]) -> Callable[..., None]:
    def add(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        h, bias = inputs[0].float(), getattr(module, "bias", None)
        sums[""] += _square(output if bias is None else output - bias)
        for adapter, update in updates.items():
            down, up = (factor.to(h.device, h.dtype) for factor in (update.down, update.up))
            sums[adapter] += _square(h @ down.T @ up.T)

    return add


def _square(values: Tensor) -> float:
    return values.double().square().sum().item()
