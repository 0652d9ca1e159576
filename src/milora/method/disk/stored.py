"""The base weights of an adapter's layers in a checkpoint on disk."""

from dataclasses import dataclass
from typing import cast

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import PreTrainedModel

from milora.method.disk.shards import DTYPES, Checkpoint
from milora.method.errors import MiloraError
from milora.method.names import StoredTensors, find_tensors
from milora.method.variant.weights import base_weight, count_matrices, is_transposed


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """The layers by name, the checkpoint, and the tensors of each layer's weight in it."""

    layers: dict[str, LoraLayer]
    checkpoint: Checkpoint
    tensors: dict[str, StoredTensors]

    def read(self, name: str, index: int = 0) -> Tensor:
        """Return a matrix of a layer as `(out, in)`."""
        pieces = [self.checkpoint.read_matrix(piece, index) for piece in self.tensors[name].of(index)]
        stored = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
        return stored.T if is_transposed(self.layers[name]) else stored

    def within(self, shard: str) -> dict[str, str]:
        """Return the names of the tensors in one file by layer, of linear layers."""
        names = {name: tensors.of(0)[0] for name, tensors in self.tensors.items()}
        return {name: tensor for name, tensor in names.items() if self.checkpoint.files[tensor] == shard}


def find_weights(model: PeftModel, layers: dict[str, LoraLayer], checkpoint: Checkpoint) -> StoredWeights:
    """Find each layer's weight under any name that transformers reads it by, its own or that of a weight tied to it.

    Raises:
        MiloraError: a weight is absent, or is not what the model's config specifies.
    """
    base = cast(PreTrainedModel, model.get_base_model())
    aliases: dict[int, list[str]] = {}
    for name, parameter in base.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), []).append(name.replace(".base_layer", ""))
    stored = find_tensors(base, {name for names in aliases.values() for name in names}, checkpoint.files)
    tensors = {}
    for name, layer in layers.items():
        names = aliases[id(base_weight(layer))]
        found = next((stored[alias] for alias in names if alias in stored), None)
        if found is None:
            raise MiloraError(
                f"{checkpoint.folder} does not contain {names[0]}",
                "its names are those of another version: load it once with transformers and call save_pretrained",
            )
        _check(names[0], layer, found, checkpoint)
        tensors[name] = found
    return StoredWeights(layers, checkpoint, tensors)


def _check(name: str, layer: LoraLayer, found: StoredTensors, checkpoint: Checkpoint) -> None:
    """Raise unless the tensors form the layer's weight, in floating point."""
    expected = tuple(base_weight(layer).shape)
    described = [[checkpoint.describe(piece) for piece in pieces] for pieces in found.pieces]
    shapes = {(sum(shape[0] for shape, _ in pieces), *pieces[0][0][1:]) for pieces in described}
    is_whole = len(found.pieces) == 1
    dtypes = {dtype for pieces in described for _, dtype in pieces}
    right = expected if is_whole else expected[1:]
    if shapes != {right} or not dtypes <= set(DTYPES.values()) or len(found.pieces) not in (1, count_matrices(layer)):
        raise MiloraError(
            f"{found.pieces[0][0]} is {', '.join(sorted(dtypes))} {described[0][0][0]}; the config specifies a "
            f"floating-point {expected} for {name}",
            "a quantized checkpoint cannot be decomposed on disk: pass the full-precision one",
        )
