"""The base weights of an adapter's layers in a checkpoint on disk."""

from dataclasses import dataclass

from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor

from milora.method.disk.shards import DTYPES, Checkpoint
from milora.method.errors import MiloraError
from milora.method.variant.weights import base_weight, is_transposed


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """The layers by name, the checkpoint, and the name of each layer's weight in it."""

    layers: dict[str, LoraLinear]
    checkpoint: Checkpoint
    tensors: dict[str, str]

    def read(self, name: str) -> Tensor:
        """Return the weight of a layer as `(out, in)`."""
        stored = self.checkpoint.read(self.tensors[name])
        return stored.T if is_transposed(self.layers[name]) else stored

    def within(self, shard: str) -> dict[str, str]:
        """Return the names of the tensors in one file, by layer."""
        return {name: tensor for name, tensor in self.tensors.items() if self.checkpoint.files[tensor] == shard}


def find_weights(model: PeftModel, layers: dict[str, LoraLinear], checkpoint: Checkpoint) -> StoredWeights:
    """Find each layer's weight under its own name, under that of a weight tied to it, or under either without a prefix.

    GPT-2's published checkpoint omits the prefix of the base model, as does any model saved without its head.

    Raises:
        MiloraError: a weight is absent, or is not the floating-point matrix that the model's config specifies.
    """
    base = model.get_base_model()
    aliases: dict[int, list[str]] = {}
    for name, parameter in base.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), []).append(name.replace(".base_layer.", "."))
    tensors = {}
    for name, layer in layers.items():
        weight = base_weight(layer)
        names = aliases[id(weight)]
        names = names + [alias.removeprefix(f"{base.base_model_prefix}.") for alias in names]
        stored = next((alias for alias in names if alias in checkpoint.files), None)
        if stored is None:
            raise MiloraError(
                f"{checkpoint.folder} does not contain {names[0]}",
                "its names are those of another version: load it once with transformers and call save_pretrained",
            )
        shape, dtype = checkpoint.describe(stored)
        if shape != tuple(weight.shape) or dtype not in DTYPES.values():
            raise MiloraError(
                f"{stored} is {dtype} {shape}; the config specifies a floating-point {tuple(weight.shape)}",
                "a quantized checkpoint cannot be decomposed on disk: pass the full-precision one",
            )
        tensors[name] = stored
    return StoredWeights(layers, checkpoint, tensors)
