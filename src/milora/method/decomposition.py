"""Many weights → their factors: over several cores, from a cache, with a progress bar."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor
from tqdm import tqdm

from milora.method.cache import FactorCache
from milora.method.errors import MiloraError
from milora.method.sharing import cost_of
from milora.method.spectrum import Components, Factors, Scale, check_rank, decompose_weight


@dataclass(frozen=True, slots=True)
class Choice:
    """Which components of every weight, and how they go into the factors; see `decompose_weight`."""

    components: Components = "minor"
    scale: Scale = "singular"
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
