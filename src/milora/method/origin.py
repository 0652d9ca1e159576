"""Whether a base is the one that the initial factors of an adapter were made from.

An adapter's file contains a digest of each weight that it targets. What no adapter is on is never checked.
"""

from concurrent.futures import ThreadPoolExecutor

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from milora.method.errors import MiloraError
from milora.method.variant.weights import (
    base_weight,
    count_matrices,
    describe_base,
    describe_weight,
    matrix_names,
    quantization_of,
    read_matrices,
    stack_factors,
    storage_of,
    weight_shape,
)

UNKNOWN = "unknown"


def describe_bases(layers: dict[str, LoraLayer]) -> dict[str, str]:
    """Return a description of each layer's weight, by name."""
    with ThreadPoolExecutor(4) as pool:  # hashing releases Python's lock
        return dict(zip(layers, pool.map(describe_base, layers.values()), strict=True))


def check_origins(
    layers: dict[str, LoraLayer],
    origins: dict[str, str],
    factors: dict[str, tuple[Tensor, Tensor]],
    *,
    certified: bool,
) -> list[str]:
    """Raise unless each layer's weight is the one that its initial factors A₀, B₀ were made from.

    A weight in the recorded dtype, or in a wider one, must be equal bit for bit. In another storage it is compared
    through the factors, if they are `certified`: see `check_base`.

    Returns warnings, as sentences, that say what could not be proven.

    Raises:
        MiloraError: a layer has another weight.
    """
    for name, layer in layers.items():
        _check_shape(name, layer, *factors[name])
    found = describe_bases(layers)
    unproven = [name for name in layers if not _is_proven(name, layers[name], found[name], origins[name])]
    if not unproven:
        return []
    if certified:
        for name in unproven:
            check_base(name, layers[name], *factors[name])
    recorded, current = (storage_of(described[unproven[0]]) for described in (origins, found))
    rest = "they agree with its initial factors to 1 %, and more" if certified else "whether they are of the same base"
    return [
        f"{len(unproven)} of {len(layers)} layers ({unproven[0]} …) have {current} weights, and the adapter was made "
        f"from {recorded} ones: {rest} cannot be checked"
    ]


def _check_shape(name: str, layer: LoraLayer, A: Tensor, B: Tensor) -> None:
    fitting, shape, matrices = (B.shape[0], A.shape[1]), weight_shape(layer), count_matrices(layer)
    if fitting != shape:
        raise _wrong_base(name, f"its factors fit a {fitting} weight, and this one is {shape}")
    if len(A) % matrices or len(A) != B.shape[1]:
        raise _wrong_base(name, f"its factors are not those of {matrices} matrices")


def _is_proven(name: str, layer: LoraLayer, found: str, recorded: str) -> bool:
    if found == recorded:
        return True
    dtype, weight = getattr(torch, storage_of(recorded), None), base_weight(layer)
    if dtype is None or quantization_of(weight):
        return False
    if weight.dtype != dtype and describe_weight(matrix.to(dtype) for matrix in read_matrices(layer)) == recorded:
        return True
    if torch.promote_types(weight.dtype, dtype) == weight.dtype:  # which contains every number of the recorded dtype
        raise _wrong_base(name, "its weight is another, if only by a little")
    return False


def check_base(name: str, layer: LoraLayer, A: Tensor, B: Tensor) -> None:
    """Raise unless each matrix of the layer maps each column of its B₀ to the matching row of its A₀.

        bᵢᵀ W = cᵢ aᵢ

    This holds for singular directions of W, and for the Q and R of its QR (OLoRA). It fails for those of another
    weight. The mismatch is relative to the average length that Wᵀ gives a vector: about 1e-3 for a base rounded to
    bf16, about 1 for another base.

    Raises:
        MiloraError: the factors were made from another weight.
    """
    _check_shape(name, layer, A, B)
    factors = zip(*stack_factors(A, B, count_matrices(layer)), strict=True)
    for matrix, weight, (one_A, one_B) in zip(matrix_names(name, layer), read_matrices(layer), factors, strict=True):
        _check_matrix(matrix, weight, one_A, one_B)


def _check_matrix(name: str, weight: Tensor, A: Tensor, B: Tensor) -> None:
    dtype = torch.promote_types(weight.dtype, torch.float32)
    weight, A, B = weight.to(dtype), A.to(weight.device, dtype), B.to(weight.device, dtype)
    image = B.T @ weight
    along = (A * image).sum(1, keepdim=True) / (A * A).sum(1, keepdim=True).clamp_min(torch.finfo(dtype).tiny)
    typical = torch.linalg.norm(weight) / weight.shape[0] ** 0.5 * torch.linalg.norm(B)
    mismatch = torch.linalg.norm(image - along * A)
    if mismatch > 1e-2 * typical:
        raise _wrong_base(name, f"the mismatch is {(mismatch / typical).item():.2g}, and at most 0.01 is allowed")


def _wrong_base(name: str, reason: str) -> MiloraError:
    return MiloraError(
        f"{name}: the initial factors are not of this base model: {reason}",
        "load the base model that base_model_name_or_path names, quantized as in training, or use the adapter's "
        "portable export",
    )
