"""Decomposes many weights: on several cores and processes, with a cache and a progress bar.

Each process of a launch decomposes a shard of the weights, and all processes get the same factors. Only
torch.distributed is used; if it is not initialized or has one process, that process decomposes all weights.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from peft.tuners.lora import LoraLayer
from torch import Tensor
from tqdm import tqdm

from milora.method.cache import FactorCache
from milora.method.decomposition import Factors, count_together, decompose_stack, decompose_weight
from milora.method.errors import MiloraError
from milora.method.files import view_bytes
from milora.method.options import Components, Weighting
from milora.method.variant.weights import base_weight, count_matrices, flatten_factors, weight_shape

Stack = list[Factors]
"""The factors of each matrix of a layer: of the only one of a linear layer, or of each expert of a mixture."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The options of every decomposition; see `decompose_weight`."""

    components: Components = "minor"
    weighting: Weighting = "singular"
    seed: int = 0


def decompose_layers(
    layers: dict[str, LoraLayer],
    adapter_name: str,
    choice: Choice,
    read: Callable[[str, int], Tensor],
    *,
    jobs: int = 1,
    cache: str | Path | None = None,
) -> Iterator[tuple[str, Stack]]:
    """Yield the name of each layer and the factors of its matrices, in order.

    Rank and scaling are read from each layer.

    Args:
        layers: the layers by name.
        adapter_name: the adapter whose rank and scaling are used.
        choice: the options of every decomposition.
        read: returns a matrix `(out, in)` of a layer by the layer's name and the matrix's index; called once per
            matrix, when it is needed.
        jobs: the number of matrices decomposed at a time, each on one thread if it is more than one: for matrices of
            this size, two threads on two of them are faster than two threads on one. Each job needs the memory of a few
            weights.
        cache: a folder in which factors are looked up and stored.

    Raises:
        MiloraError: a weight cannot be decomposed; the message names its layer.
    """
    store = FactorCache(Path(cache)) if cache else None

    def decompose(part: tuple[str, range]) -> Stack:
        name, indices = part
        layer = layers[name]
        options = {"rank": layer.r[adapter_name], "scaling": layer.scaling[adapter_name], **asdict(choice)}
        with _named(name):
            return _decompose([read(name, index) for index in indices], options, store)

    work = {name: cost_of(layer) for name, layer in layers.items()}
    parts = {name: list(_divide(layer, layer.r[adapter_name], choice)) for name, layer in layers.items()}
    # Counted in operations, not in matrices: the remaining time is then correct for different shapes.
    # disable=None turns the bar off without a terminal.
    bar = tqdm(total=sum(work.values()), desc="decomposing", disable=None, bar_format=BAR)
    with bar, _workers(jobs) as pool:
        results = pool.map(decompose, ((name, indices) for name, ranges in parts.items() for indices in ranges))
        for name, layer in layers.items():
            stack: Stack = []
            for found in islice(results, len(parts[name])):
                stack += found
                bar.set_postfix_str(name.removeprefix("base_model.model."), refresh=False)
                bar.update(work[name] // count_matrices(layer) * len(found))
            yield name, stack


def _divide(layer: LoraLayer, rank: int, choice: Choice) -> Iterator[range]:
    """Yield the indices of the matrices that are decomposed in one call."""
    count = count_matrices(layer)
    together = count_together(weight_shape(layer), base_weight(layer), rank, choice.components)
    for first in range(0, count, together):
        yield range(first, min(first + together, count))


def _decompose(weights: list[Tensor], options: dict[str, Any], store: FactorCache | None) -> Stack:
    """Return the factors of matrices of one shape, those in the cache from there."""
    if not all(weight.any() for weight in weights):
        raise MiloraError(
            "the weight is zero everywhere: its factors would be zero, too, and would never train",
            "take the layer out of target_modules, or name it in exclude_modules",
        )
    known: list[Factors | None] = [None] * len(weights)
    if store:
        paths = [store.path(weight, options) for weight in weights]
        known = [store.read(path) for path in paths]
    missing = [weight for weight, found in zip(weights, known, strict=True) if not found]
    if len(weights) == 1:
        made = [decompose_weight(weight, **options) for weight in missing]
    else:
        made = decompose_stack(missing, **options) if missing else []
    following = iter(made)
    stack = [found or next(following) for found in known]
    if store:
        for path, found, factors in zip(paths, known, stack, strict=True):
            if not found:
                store.write(path, factors)
    return stack


def flatten_stack(stack: Stack) -> tuple[Tensor, Tensor]:
    """Return A `(E·r, in)` and B `(out, r·E)` of a layer in PEFT's layout."""
    return flatten_factors(torch.stack([found.A for found in stack]), torch.stack([found.B for found in stack]))


BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} < {remaining}{postfix}"


@contextmanager
def _named(layer: str) -> Iterator[None]:
    try:
        yield
    except MiloraError as error:
        raise MiloraError(f"{layer}: {error.message}", error.hint) from error


@contextmanager
def _workers(jobs: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of threads; threads are enough, because LAPACK releases Python's lock."""
    if jobs < 1:
        raise MiloraError(f"jobs={jobs} is below 1", "pass the number of cores to use")
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(jobs, initializer=lambda: torch.set_num_threads(threads if jobs == 1 else 1))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


Found = TypeVar("Found", Stack, tuple[Tensor, Tensor])


def decompose_together(
    layers: dict[str, LoraLayer], decompose: Callable[[dict[str, LoraLayer]], dict[str, Found]]
) -> dict[str, Found]:
    """Return the result of `decompose` for all layers; each layer is decomposed by one process and sent to the others.

    Every process of the launch must call this with the same weights.

    Raises:
        MiloraError: `decompose` raised an error on any process, or a weight or a factor differs between processes. All
            processes raise it.
    """
    if not is_distributed():
        return decompose(layers)
    _check_same(
        {name: _digest(base_weight(layer)) for name, layer in layers.items()},
        "weight",
        "load all weights on every process before the initialization: without fsdp_cpu_ram_efficient_loading, "
        "zero.Init or a device map",
    )
    owners = assign_ranks({name: cost_of(layer) for name, layer in layers.items()}, dist.get_world_size())
    shard = {name: layer for name, layer in layers.items() if owners[name] == dist.get_rank()}
    mine: dict[str, Found] = {}
    failure = None
    try:
        mine = {name: _on_cpu(found) for name, found in decompose(shard).items()} if shard else {}
    except MiloraError as error:
        failure = error.message, error.hint
    gathered = _gather((mine, failure))
    for _, failed in gathered:
        if failed:
            raise MiloraError(*failed)
    factors: dict[str, Found] = {name: gathered[owners[name]][0][name] for name in layers}
    check_same_factors(factors)
    return factors


def check_same_factors(factors: Mapping[str, Stack | tuple[Tensor, Tensor]]) -> None:
    """Raise on every process unless all processes have the same factors.

    Raises:
        MiloraError: a factor differs between processes.
    """
    if is_distributed():
        digests = {name: _digest(*_pair(found)) for name, found in factors.items()}
        _check_same(digests, "factor", "pass the factors of the same decomposition on every process")


def is_distributed() -> bool:
    """Return whether this process is one of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def assign_ranks(costs: dict[str, int], ranks: int) -> dict[str, int]:
    """Return the process rank of each name: in descending order of cost, each to the rank with the lowest total."""
    loads = [0] * ranks
    owners = {}
    for name in sorted(costs, key=lambda name: (-costs[name], name)):
        owners[name] = min(range(ranks), key=lambda rank: loads[rank])
        loads[owners[name]] += costs[name]
    return owners


def cost_of(layer: LoraLayer) -> int:
    """Return the operations of a layer's decomposition, up to a factor: m n² for m ≥ n, for each matrix."""
    small, large = sorted(weight_shape(layer))
    return int(large * small**2) * count_matrices(layer)


def _check_same(digests: dict[str, str], what: str, hint: str) -> None:
    """Raise on every process unless all have the same digests."""
    first, *others = _gather(digests)
    for rank, other in enumerate(others, 1):
        for name in first:
            if other.get(name) != first[name]:
                raise MiloraError(f"{name}: the {what} on process {rank} differs from that on process 0", hint)


def _gather(mine: Any) -> list[Any]:
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, mine)
    return gathered


def _pair(found: Stack | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return flatten_stack(found) if isinstance(found, list) else found


def _on_cpu(found: Found) -> Found:
    """Return the factors on the CPU: a CUDA tensor would be received on the sender's device."""
    if isinstance(found, list):
        return [replace(one, B=one.B.cpu(), A=one.A.cpu(), singular_values=one.singular_values.cpu()) for one in found]
    A, B = found
    return A.cpu(), B.cpu()


def _digest(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
        digest.update(view_bytes(tensor))
    return digest.hexdigest()
