"""The layers of an adapter that MiLoRA cannot initialize: refused in one message, or left ordinary LoRA."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from peft import PeftModel
from peft.tuners.lora import LoraLayer, ParamWrapper

from milora.method.errors import MiloraError
from milora.method.variant.config import lora_config
from milora.method.variant.weights import lower_rank, weight_shape


@dataclass(frozen=True, slots=True)
class Unfit:
    """A layer that MiLoRA cannot initialize.

    Attributes:
        target: the name of what PEFT wraps, a module or a parameter of the base.
        reason: why it cannot.
        highest: the largest possible rank, if the layer only has fewer components than the adapter's rank, else None.
    """

    target: str
    reason: str
    highest: int | None = None


def adapter_layers(model: PeftModel, adapter_name: str) -> dict[str, LoraLayer]:
    """Return all LoRA layers of an adapter by name, of whatever kind."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    return {name: layer for name, layer in layers.items() if adapter_name in {*layer.lora_A, *layer.lora_embedding_A}}


def is_decomposable(layer: LoraLayer) -> bool:
    """Return whether PEFT's LoRA layer is one of a matrix, or of a stack of matrices."""
    # bitsandbytes' layers have the attributes of Linear without deriving from it.
    return type(layer).__name__ in ("Linear", "Linear4bit", "Linear8bitLt", "ParamWrapper")


def find_unfit(layers: dict[str, LoraLayer], adapter_name: str) -> dict[str, Unfit]:
    """Return those layers of an adapter by name that MiLoRA cannot initialize."""
    found = {name: _judge(name, layer, adapter_name) for name, layer in layers.items()}
    return {name: unfit for name, unfit in found.items() if unfit}


def _judge(name: str, layer: LoraLayer, adapter_name: str) -> Unfit | None:
    target = _target(name, layer)
    if not is_decomposable(layer):
        return Unfit(target, f"lora.{type(layer).__name__} is not a linear layer")
    shape, rank = weight_shape(layer), layer.r[adapter_name]
    if rank > min(shape):
        return Unfit(target, f"rank {rank} is above {min(shape)}, the largest of a {shape} weight", min(shape))
    return None


def _target(name: str, layer: LoraLayer) -> str:
    target = name.removeprefix("base_model.model.").replace(".base_layer", "")  # of nested wrappers of parameters
    return f"{target}.{layer.parameter_name}" if isinstance(layer, ParamWrapper) else target


def refuse(layers: dict[str, LoraLayer], unfit: dict[str, Unfit], *, can_leave: bool) -> MiloraError:
    """Return an error that lists all layers that do not fit, and what to add to LoraConfig.

    `can_leave` says whether they could also be left ordinary LoRA.
    """
    patterns = _patterns(layers, unfit)
    counts = Counter((patterns[name], layer.reason) for name, layer in unfit.items())
    listed = "; ".join(f"{count} × {pattern}: {reason}" for (pattern, reason), count in counts.items())
    ranks = {patterns[name]: layer.highest for name, layer in unfit.items() if layer.highest is not None}
    excluded = sorted({patterns[name] for name, layer in unfit.items() if layer.highest is None})
    lines = []
    if ranks:
        lines.append(f"rank_pattern={json.dumps(ranks)}")
    if excluded:
        lines.append(f"exclude_modules={json.dumps(excluded)}")
    hint = f"add {', '.join(lines)} to LoraConfig"
    if can_leave:
        hint += ', or pass unsupported="lora" to leave them ordinary LoRA'
    return MiloraError(f"{len(unfit)} of {len(layers)} layers cannot start from their components: {listed}", hint)


def leave_ordinary(model: PeftModel, adapter_name: str) -> list[str]:
    """Lower the ranks of unfit layers to what fits, with the same scaling; return a warning, as a sentence."""
    layers = adapter_layers(model, adapter_name)
    unfit = find_unfit(layers, adapter_name)
    if not unfit:
        return []
    config, patterns = lora_config(model, adapter_name), _patterns(layers, unfit)
    ranks, alphas = {}, {}
    for name, layer in unfit.items():
        if layer.highest is not None:
            ordinary = layers[name]
            lower_rank(ordinary, adapter_name, layer.highest)
            scaling: float = ordinary.scaling[adapter_name]
            alpha = scaling * (math.sqrt(layer.highest) if config.use_rslora else layer.highest)
            ordinary.lora_alpha[adapter_name] = alpha
            ranks[patterns[name]], alphas[patterns[name]] = layer.highest, alpha
    # PEFT uses the first pattern that matches.
    config.rank_pattern = ranks | (config.rank_pattern or {})
    config.alpha_pattern = alphas | (config.alpha_pattern or {})
    named = ", ".join(f"{count} × {pattern}" for pattern, count in Counter(patterns.values()).items())
    return [f"{len(unfit)} of {len(layers)} layers are ordinary LoRA, not MiLoRA: {named}"]


def _patterns(layers: dict[str, LoraLayer], unfit: dict[str, Unfit]) -> dict[str, str]:
    """Return the shortest end of each unfit layer's name that no other kind of layer has, for PEFT's patterns."""
    kinds = {name: (unfit[name].reason if name in unfit else "") for name in layers}
    targets = {name: _target(name, layer) for name, layer in layers.items()}
    ends: dict[str, set[str]] = {}
    for name, target in targets.items():
        for end in _ends(target):
            ends.setdefault(end, set()).add(kinds[name])
    return {name: next(end for end in _ends(targets[name]) if len(ends[end]) == 1) for name in unfit}


def _ends(target: str) -> Iterator[str]:
    """Yield the ends of a name, the shortest first, of a parameter with its module's name."""
    parts = target.split(".")
    for count in range(2 if parts[-1] == "weight" else 1, len(parts) + 1):
        yield ".".join(parts[-count:])
