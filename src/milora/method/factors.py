"""Many weights → their factors: over several cores and processes, from a cache, with a progress bar.

Each process of a launch decomposes a share of the weights, and all end with the same factors. Only torch.distributed is
used; if it is not initialized, or has one process, that process decomposes everything.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor
from tqdm import tqdm

from milora.method.cache import FactorCache
from milora.method.decomposition import Factors, check_rank, decompose_weight
from milora.method.errors import MiloraError
from milora.method.files import view_bytes
from milora.method.options import Components, Weighting


@dataclass(frozen=True, slots=True)
class Choice:
    """Which components of every weight, and how they go into the factors; see `decompose_weight`."""

    components: Components = "minor"
    weighting: Weighting = "singular"
    seed: int = 0


def decompose_layers(
    layers: dict[str, LoraLinear],
    adapter_name: str,
    choice: Choice,
    read: Callable[[str], Tensor],
    *,
    jobs: int = 1,
    cache: Path | None = None,
) -> Iterator[tuple[str, Factors]]:
    """Yield each layer's name and the factors of its base weight, in order; rank and scaling are the layers' own.

    Args:
        read: gives the weight `(out, in)` of the layer of that name, when its turn comes.
        jobs: weights at a time, each on one thread of its own where there are more than one: for matrices of this size
            two threads on two weights beat two threads on one. Memory beyond what `read` holds is a few weights for
            each.
        cache: a folder in which factors are looked up and kept.

    Raises:
        MiloraError: with the name of the layer whose weight cannot be decomposed.
    """
    store = FactorCache(cache) if cache else None
    for name, layer in layers.items():
        with _named(name):  # before hours are spent on the layers before it
            check_rank(layer.r[adapter_name], (layer.out_features, layer.in_features))

    def decompose(name: str) -> Factors:
        layer = layers[name]
        rank, scaling = layer.r[adapter_name], layer.scaling[adapter_name]
        with _named(name):
            weight = read(name)
            path = store.path(weight, {"rank": rank, "scaling": scaling, **asdict(choice)}) if store else None
            found = store.read(path) if store and path else None
            factors = found or decompose_weight(weight, rank, scaling=scaling, **asdict(choice))
            if store and path and not found:
                store.write(path, factors)
        return factors

    work = {name: cost_of(layer) for name, layer in layers.items()}
    # Counted in operations, not in matrices: the time left is then honest where shapes differ. Off without a terminal.
    bar = tqdm(total=sum(work.values()), desc="decomposing", disable=None, bar_format=BAR)
    with bar, _workers(jobs) as pool:
        for name, result in zip(layers, pool.map(decompose, layers), strict=True):
            bar.set_postfix_str(name.removeprefix("base_model.model."), refresh=False)
            bar.update(work[name])
            yield name, result


BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} < {remaining}{postfix}"


@contextmanager
def _named(layer: str) -> Iterator[None]:
    try:
        yield
    except MiloraError as error:
        raise MiloraError(f"{layer}: {error.message}", error.hint) from error


@contextmanager
def _workers(jobs: int) -> Iterator[ThreadPoolExecutor]:
    """Threads suffice: LAPACK runs without Python's lock."""
    if jobs < 1:
        raise MiloraError(f"jobs={jobs} is below 1", "give the number of cores to use")
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(jobs, initializer=lambda: torch.set_num_threads(threads if jobs == 1 else 1))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


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
