"""The base weight and the trained factors of PEFT's LoRA layers, whatever their storage.

A layer is a stack of matrices of one shape: one for a linear layer, one for each expert of a mixture. PEFT stores the
factors of a stack of E matrices as A `(E·r, in)`, expert after expert, and B `(out, r·E)`, rank after rank.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from accelerate.utils import align_module_device, has_offloaded_params
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.utils.integrations import get_bnb_param_type
from torch import Tensor, nn

from milora.method.errors import MiloraError
from milora.method.files import view_bytes

LENGTH = 48  # of an encoded description: it does not depend on the storage


READ = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def base_weight(layer: LoraLayer) -> nn.Parameter:
    """Return the base weight of a LoRA layer as it is stored."""
    if isinstance(layer, ParamWrapper):
        return cast(nn.Parameter, layer.get_param())  # type: ignore[no-untyped-call]
    return cast(nn.Parameter, layer.get_base_layer().weight)


def count_matrices(layer: LoraLayer) -> int:
    """Return how many matrices of one shape the base weight of a LoRA layer consists of."""
    return layer.num_experts if isinstance(layer, ParamWrapper) else 1


def matrix_names(name: str, layer: LoraLayer) -> list[str]:
    """Return the names of the matrices of a layer for people: its own, or `….experts.down_proj[3]` of expert 3."""
    if not isinstance(layer, ParamWrapper):
        return [name]
    name = f"{name.replace('.base_layer', '')}.{layer.parameter_name}"  # a wrapper of two parameters is nested
    return [f"{name}[{index}]" for index in range(layer.num_experts)] if base_weight(layer).ndim == 3 else [name]


def weight_shape(layer: LoraLayer) -> tuple[int, int]:
    """Return `(out, in)` of each matrix of a LoRA layer."""
    assert layer.out_features is not None and layer.in_features is not None
    return layer.out_features, layer.in_features


def is_transposed(layer: LoraLayer) -> bool:
    """Return whether each matrix is stored as `(in, out)`, as in Conv1D and in GPT-OSS's experts."""
    if isinstance(layer, ParamWrapper):
        return base_weight(layer).ndim == 3 and not layer._did_swap_in_out_features
    # bitsandbytes' LoRA layers do not derive from PEFT's Linear, but have this attribute too.
    return bool(cast(LoraLinear, layer).fan_in_fan_out)


def quantization_of(weight: nn.Parameter) -> str | None:
    """Return "4bit" or "8bit" if bitsandbytes stores the weight so."""
    return get_bnb_param_type(weight) or None


def count_numbers(weight: nn.Parameter) -> int:
    """Return how many numbers a weight has, two in each byte if bitsandbytes stores it in 4 bits."""
    return weight.numel() * (2 if get_bnb_param_type(weight) == "4bit" else 1)


def is_quantized(weight: nn.Parameter) -> bool:
    """Return whether bitsandbytes stores the weight in 4 or 8 bits."""
    return quantization_of(weight) is not None


def is_offloaded(layer: LoraLayer) -> bool:
    """Return whether accelerate keeps the base weight in memory or on disk, and loads it for each pass."""
    return bool(has_offloaded_params(layer.get_base_layer()))


def place_factors(layer: LoraLayer, adapter_name: str) -> None:
    """Give the factors of an offloaded layer memory where the layer computes; PEFT creates them on the meta device."""
    device = cast(Any, layer.get_base_layer())._hf_hook.execution_device
    for factors in (layer.lora_A, layer.lora_B):
        factors[adapter_name].to_empty(device=device)


def name_quantizer(layer: LoraLayer) -> str | None:
    """Return what stores the base weight in a form that is not read here; None if it is read.

    Floating-point weights are read, and those of bitsandbytes. Others are integers under another name (GPTQ, AWQ, HQQ),
    or numbers that mean nothing without their scales (FP8, torchao).
    """
    base = layer.get_base_layer()
    weight = base_weight(layer) if isinstance(layer, ParamWrapper) else getattr(base, "weight", None)
    if isinstance(weight, Tensor) and is_quantized(cast(nn.Parameter, weight)):
        return None
    if isinstance(weight, Tensor) and weight.dtype in READ:
        is_plain = type(weight.data).__module__.partition(".")[0] == "torch"
        return None if is_plain else type(weight.data).__name__
    integers = any(not tensor.is_floating_point() for tensor in (*base.parameters(), *base.buffers()))
    return type(base).__name__ if isinstance(weight, Tensor) or integers else None


def trained_factors(layer: LoraLayer, adapter_name: str) -> tuple[nn.Parameter, nn.Parameter]:
    """Return A `(r, in)` and B `(out, r)` of a LoRA layer, those of a stack in PEFT's layout."""
    A, B = layer.lora_A[adapter_name].weight, layer.lora_B[adapter_name].weight
    return cast(nn.Parameter, A), cast(nn.Parameter, B)


def stack_factors(A: Tensor, B: Tensor, matrices: int) -> tuple[Tensor, Tensor]:
    """Return A `(E, r, in)` and B `(E, out, r)` of E matrices from PEFT's layout; `flatten_factors` is the inverse."""
    return A.reshape(matrices, -1, A.shape[-1]), B.reshape(len(B), -1, matrices).permute(2, 0, 1)


def flatten_factors(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Return A `(E·r, in)` and B `(out, r·E)` from A `(E, r, in)` and B `(E, out, r)`."""
    return A.reshape(-1, A.shape[-1]), B.permute(1, 2, 0).reshape(B.shape[1], -1).contiguous()


def read_weight(module: LoraLayer, index: int = 0) -> Tensor:
    """Return a matrix of a LoRA layer as `(out, in)`, whatever its storage; `index` is that of the expert.

    A quantized weight is read by passing the identity through its layer, so that it is what the layer computes.

    Raises:
        MiloraError: bitsandbytes has repacked a 4-bit weight, as it does on a CPU at the first forward pass in eval
            mode; the weight then gives other results outside of eval mode.
    """
    layer = module.get_base_layer()
    with align_module_device(layer):  # one that is offloaded is loaded here, and only here
        weight = base_weight(module)
        if not is_quantized(weight):
            matrix = weight.detach()[index] if weight.ndim == 3 else weight.detach()
            return matrix.T if is_transposed(module) else matrix
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


def read_matrices(layer: LoraLayer) -> Iterator[Tensor]:
    """Yield every matrix of a LoRA layer; see `read_weight`."""
    return (read_weight(layer, index) for index in range(count_matrices(layer)))


def lower_rank(layer: LoraLayer, adapter_name: str, rank: int) -> None:
    """Lower the rank of an untrained, ordinary LoRA layer, and keep its scaling."""
    A, B = stack_factors(*trained_factors(layer, adapter_name), count_matrices(layer))
    A, B = flatten_factors(A[:, :rank], B[..., :rank])
    down, up = layer.lora_A[adapter_name], layer.lora_B[adapter_name]
    for factor, data in zip(trained_factors(layer, adapter_name), (A, B), strict=True):
        factor.data = data.detach().clone()
    down.out_features, up.in_features = A.shape[0], B.shape[1]  # type: ignore[assignment]  # of nn.Linear
    layer.r[adapter_name] = rank


def multiply_factors(up: Tensor, down: Tensor, scaling: float, transposed: bool) -> Tensor:
    """Return s·up·down in the layout of the stored matrix or stack of matrices, in float32 or wider."""
    dtype = torch.promote_types(up.dtype, torch.float32)
    product = (up.detach().to(dtype) @ down.detach().to(dtype)) * scaling
    return product.mT if transposed else product


def describe_base(layer: LoraLayer) -> str:
    """Return the storage and the digest of a layer's weight; equal descriptions are equal weights."""
    return describe_weight(read_matrices(layer), quantization_of(base_weight(layer)))


def describe_weight(matrices: Iterable[Tensor], quantization: str | None = None) -> str:
    """Return the storage and the digest of a layer's matrices `(out, in)`, such as `bfloat16 3f0c…`."""
    digest, dtype = hashlib.sha256(), None
    for matrix in matrices:
        digest.update(f"{list(matrix.shape)}".encode())
        digest.update(view_bytes(matrix))
        dtype = matrix.dtype
    return f"{quantization or str(dtype).removeprefix('torch.')} {digest.hexdigest()[:32]}"


def encode_description(description: str) -> Tensor:
    """Return a description as bytes, which a state dict can contain."""
    return torch.tensor(list(description.ljust(LENGTH).encode()), dtype=torch.uint8)


def decode_description(encoded: Tensor) -> str:
    return bytes(encoded.tolist()).decode().strip()


def storage_of(description: str) -> str:
    """Return the dtype, or the quantization, that a description begins with."""
    return description.partition(" ")[0]
