"""What can be said of an update at every step: from small Gram matrices, without a weight of the base."""

from collections import defaultdict

import torch
from peft import PeftModel
from torch import Tensor

from milora.method.analysis.update import effective_rank
from milora.method.layers import is_sharded
from milora.method.unsupported import adapter_layers, is_decomposable
from milora.method.variant.linear import IntactVariant, find_variant, stacked_update
from milora.method.variant.weights import trained_factors


@torch.no_grad()
def watch_update(model: PeftModel, adapter_name: str = "default", *, with_ranks: bool = True) -> dict[str, float]:
    """Return ‖ΔW‖ over all layers, and `with_ranks` the mean effective rank of a layer's ΔW.

    Nothing is returned for a sharded adapter, for one whose updates are not products of two factors, or for one that
    has diverged.

    With ΔW = up·down, the squared singular values of ΔW are the eigenvalues of

        G^½ (down downᵀ) G^½    G = upᵀ up

    whose sum is the trace of G (down downᵀ). The eigenvalues of a 7B model take most of a second at r = 64.
    """
    by_rank: dict[tuple[int, torch.device], list[Tensor]] = defaultdict(list)
    for layer in adapter_layers(model, adapter_name).values():
        if not is_decomposable(layer) or not isinstance(find_variant(layer, adapter_name), IntactVariant | None):
            return {}
        if is_sharded(trained_factors(layer, adapter_name)[0]):
            return {}
        up, down = (factor.detach().float() for factor in stacked_update(layer, adapter_name))
        gram = torch.stack([layer.scaling[adapter_name] ** 2 * (up.mT @ up), down @ down.mT])
        by_rank[up.shape[-1], up.device].append(gram)
    if not by_rank:  # only whole modules are trained
        return {}
    stacks = [torch.cat(grams, dim=1) for grams in by_rank.values()]
    if not all(stack.isfinite().all() for stack in stacks):
        return {}
    grams = [stack.cpu().double() for stack in stacks]
    norm = max(0.0, sum((left * right).sum().item() for left, right in grams)) ** 0.5
    if not with_ranks:
        return {"update_norm": norm}
    squares = [_squared_values(left, right) for left, right in grams]
    ranks = torch.cat([effective_rank(found.sqrt()) for found in squares])
    return {"update_norm": norm, "update_effective_rank": ranks.nan_to_num().mean().item()}


def _squared_values(left: Tensor, right: Tensor) -> Tensor:
    """Return the eigenvalues `(n, q)` of the products of Gram matrices `(n, q, q)`."""
    values, vectors = torch.linalg.eigh(left)
    root = vectors * values.clamp(min=0).sqrt().unsqueeze(-2)
    squares: Tensor = torch.linalg.eigvalsh(root.mT @ right @ root)
    return squares.clamp(min=0)
