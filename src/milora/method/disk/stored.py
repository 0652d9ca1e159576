"""Where the base weights of an adapter's layers lie in a checkpoint on disk."""

from dataclasses import dataclass

from peft import PeftModel
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor

from milora.method.disk.shards import DTYPES, Checkpoint
from milora.method.errors import MiloraError


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """The layers by name, the checkpoint, and the name there of each layer's weight."""

    layers: dict[str, LoraLinear]
    checkpoint: Checkpoint
    tensors: dict[str, str]

    def read(self, name: str) -> Tensor:
        """Return the weight of a layer as `(out, in)`."""
        stored = self.checkpoint.read(self.tensors[name])
        return stored.T if self.layers[name].fan_in_fan_out else stored

    def within(self, shard: str) -> dict[str, str]:
        """Return those of the tensors that lie in one file, by layer."""
        return {name: tensor for name, tensor in self.tensors.items() if self.checkpoint.files[tensor] == shard}


def find_weights(model: PeftModel, layers: dict[str, LoraLinear], checkpoint: Checkpoint) -> StoredWeights:
    """Find each layer's weight under its own name, that of a weight tied to it, or either without a prefix.

    GPT-2's published copy leaves the base model's prefix out, as a model saved without its head does.

    Raises:
        MiloraError: a weight is not there, or is not the floating-point matrix that the model's config asks for.
    """
    base = model.get_base_model()
    aliases: dict[int, list[str]] = {}
    for name, parameter in base.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), []).append(name.replace(".base_layer.", "."))
    tensors = {}
    for name, layer in layers.items():
        weight = layer.get_base_layer().weight
        names = aliases[id(weight)]
        names = names + [alias.removeprefix(f"{base.base_model_prefix}.") for alias in names]
        stored = next((alias for alias in names if alias in checkpoint.files), None)
        if stored is None:
            raise MiloraError(
                f"{checkpoint.folder} holds no {names[0]}",
                "its names are of another version: load it once with transformers and call save_pretrained",
            )
        shape, dtype = checkpoint.describe(stored)
        if shape != tuple(weight.shape) or dtype not in DTYPES.values():
            raise MiloraError(
                f"{stored} is {dtype} {shape}; the config asks for a floating-point {tuple(weight.shape)}",
                "a quantised checkpoint cannot be decomposed on disk: name the full-precision one",
            )
        tensors[name] = stored
    return StoredWeights(layers, checkpoint, tensors)
