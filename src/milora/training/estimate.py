"""Arithmetic on a model's shapes, without its weights: parameters, memory, operations."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from peft.tuners.lora import LoraLayer
from torch import nn

from milora.method.errors import MiloraError
from milora.method.options import Dtype
from milora.method.variant.weights import weight_shape
from milora.models.base import load_skeleton
from milora.models.methods import make_config, put_adapter
from milora.models.projector import with_projector
from milora.run.recipe import Recipe
from milora.run.sections import AdapterSection

BYTES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
QUANTIZED = {"nf4": 0.5, "int8": 1.0}  # bytes of a weight
# Bytes per token and hidden unit that a layer keeps for its backward pass, in 16 bits and without the attention matrix:
# Korthikanti et al. 2022, "Reducing activation recomputation in large transformer models", equation 2.
ACTIVATIONS = 34


@dataclass(frozen=True, slots=True)
class Size:
    """Counts of parameters, and the shape of a model.

    `looked_up` counts those of input embeddings, which take part in no product unless they are the head's too;
    `covered` those of the weights under the adapter. `layers` has the smaller side of each of these weights by name.
    """

    total: int
    looked_up: int
    trainable: int
    covered: int
    layers: dict[str, int]
    depth: int
    hidden: int
    vocabulary: int

    @property
    def operations(self) -> float:
        """Of a training step per token: 4 for a frozen weight, 6 for a trained one; see `count_operations`."""
        base = self.total - self.looked_up
        return count_operations(0, base) if self.trainable == self.total else count_operations(base, self.trainable)


def count_operations(frozen: float, trained: float) -> float:
    """Return the floating-point operations of a training step per token, attention's products left out.

    A weight takes 2 in the forward pass and 2 in the backward pass to its input; a trained one 2 more for its gradient.
    """
    return 4 * frozen + 6 * trained


def measure_size(recipe: Recipe) -> Size:
    """Return the size of the recipe's model and adapter, from the model's config alone."""
    model = load_skeleton(recipe.model)
    config, total = model.config.get_text_config(), model.num_parameters()
    embeddings: nn.Embedding = model.get_input_embeddings()  # type: ignore[assignment]
    vocabulary = embeddings.num_embeddings
    looked_up = 0 if config.tie_word_embeddings else embeddings.weight.numel()
    trainable, covered, layers = total, total, {}
    if recipe.adapter.method != "full":
        peft_model = put_adapter(model, make_config(_as_lora(with_projector(recipe, model))))
        trainable = peft_model.num_parameters(only_trainable=True)
        found = {name: part for name, part in peft_model.named_modules() if isinstance(part, LoraLayer)}
        shapes = {name.removeprefix("base_model.model."): weight_shape(part) for name, part in found.items()}
        layers = {name: min(shape) for name, shape in shapes.items()}
        covered = sum(rows * columns for rows, columns in shapes.values())
    return Size(total, looked_up, trainable, covered, layers, config.num_hidden_layers, config.hidden_size, vocabulary)


def _as_lora(adapter: AdapterSection) -> AdapterSection:
    """The LoRA of this shape: AdaLoRA starts at 1.5 times the rank; other methods' starts need the weights."""
    rank = -(-3 * adapter.rank // 2) if adapter.method == "adalora" else adapter.rank
    kept = {"rank_pattern", "alpha_pattern", "target_modules", "alpha", "modules_to_save"}
    return AdapterSection(method="lora", rank=rank, **adapter.model_dump(include=kept))


def estimate_memory(recipe: Recipe, size: Size, tokens: int) -> float:
    """Return the peak memory of training in bytes, with `tokens` per pass: weights, optimizer states, activations.

    A trained number takes itself, its gradient, two moments, and in intact form its start, in 32 bits each. The logits
    are counted twice in 32 bits, for as many tokens.
    """
    width = BYTES[recipe.model.dtype]
    weights = size.total * (QUANTIZED[recipe.model.quantization] if recipe.model.quantization else width)
    states = size.trainable * 4 * (5 if recipe.adapter.has_initial_factors else 4)
    if recipe.adapter.method == "full":
        weights, width = 0, 4
    layers = 1 if recipe.training.activation_checkpointing else size.depth
    kept = tokens * size.hidden * width / 2 * (ACTIVATIONS * layers + 2 * (size.depth - layers))
    return weights + states + kept + tokens * size.vocabulary * 8


def needed_space(trainable: int) -> int:
    """Return the bytes that a run may write."""
    # A checkpoint has the factors, as many initial ones, and two moments; up to three exist at once, then the exports.
    return 16 * 4 * trainable


def check_space(folder: Path, trainable: int) -> int:
    """Return the free bytes of the disk; raise unless it has room for the run."""
    free, needed = shutil.disk_usage(folder).free, needed_space(trainable)
    if free < needed:
        raise MiloraError(
            f"{folder} has {free / 1e6:.0f} MB of free disk space, and this run may need {needed / 1e6:.0f} MB",
            "free some, lower adapter.rank, or choose another folder with --runs",
        )
    return free
