"""One initialisation among the processes of a launch: each decomposes a share of the weights, all end with the same.

torch.distributed alone; where it is not initialised, or has one process, nothing is shared.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch.distributed as dist
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor

from milora.method.content import view_bytes
from milora.method.errors import MiloraError
from milora.method.spectrum import Factors

Found = TypeVar("Found", Factors, tuple[Tensor, Tensor])


def decompose_together(
    layers: dict[str, LoraLinear], decompose: Callable[[dict[str, LoraLinear]], dict[str, Found]]
) -> dict[str, Found]:
    """Return what `decompose` finds for all layers, each found by one process and given to all of them.

    Every process of the launch must call this, with the same weights.

    Raises:
        MiloraError: what any process' `decompose` raised, on all of them; or a weight, or a found factor, is not the
            same on all processes.
    """
    if not is_shared():
        return decompose(layers)
    _check_same(
        {name: _digest(layer.get_base_layer().weight) for name, layer in layers.items()},
        "weight",
        "every process must load all weights before initialising: without fsdp_cpu_ram_efficient_loading, zero.Init "
        "or a device map",
    )
    owners = share_out({name: cost_of(layer) for name, layer in layers.items()}, dist.get_world_size())
    share = {name: layer for name, layer in layers.items() if owners[name] == dist.get_rank()}
    mine: dict[str, Found] = {}
    failure = None
    try:
        mine = {name: _on_cpu(found) for name, found in decompose(share).items()} if share else {}
    except MiloraError as error:
        failure = error.message, error.hint
    gathered = _gather((mine, failure))
    for _, failed in gathered:
        if failed:
            raise MiloraError(*failed)
    factors: dict[str, Found] = {name: gathered[owners[name]][0][name] for name in layers}
    check_same_factors(factors)
    return factors


def check_same_factors(factors: Mapping[str, Factors | tuple[Tensor, Tensor]]) -> None:
    """Raise on every process unless all processes have the same factors; where there is one, do nothing."""
    if is_shared():
        digests = {name: _digest(*_pair(found)) for name, found in factors.items()}
        _check_same(digests, "factor", "give every process the factors of one and the same decomposition")


def is_shared() -> bool:
    """Whether this process is one of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def share_out(costs: dict[str, int], ranks: int) -> dict[str, int]:
    """Return the rank of each name: the costliest first, each to the rank with the least so far."""
    loads = [0] * ranks
    owners = {}
    for name in sorted(costs, key=lambda name: (-costs[name], name)):
        owners[name] = min(range(ranks), key=lambda rank: loads[rank])
        loads[owners[name]] += costs[name]
    return owners


def cost_of(layer: LoraLinear) -> int:
    """Operations of a decomposition, up to a factor: m n² for m ≥ n."""
    small, large = sorted((layer.in_features, layer.out_features))
    return int(large * small**2)


def _check_same(digests: dict[str, str], what: str, hint: str) -> None:
    """Raise on every process unless all have the same digests."""
    first, *others = _gather(digests)
    for rank, other in enumerate(others, 1):
        for name in first:
            if other.get(name) != first[name]:
                raise MiloraError(f"{name}: the {what} on process {rank} is not that on process 0", hint)


def _gather(mine: Any) -> list[Any]:
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, mine)
    return gathered


def _pair(found: Factors | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return (found.A, found.B) if isinstance(found, Factors) else found


def _on_cpu(found: Found) -> Found:
    """A tensor of a GPU would arrive on the sender's."""
    if isinstance(found, Factors):
        return replace(found, B=found.B.cpu(), A=found.A.cpu(), singular_values=found.singular_values.cpu())
    A, B = found
    return A.cpu(), B.cpu()


def _digest(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
        digest.update(view_bytes(tensor))
    return digest.hexdigest()
