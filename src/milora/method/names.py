"""The names of a model's weights in files, by transformers' own rules for reading what other versions have saved."""

from collections.abc import Collection
from dataclasses import dataclass

from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    ConversionOps,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

PREFIX = "base_model.model."


def rename_stored(model: PeftModel, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of an adapter under the names that the model's layers have now.

    Transformers has renamed the layers of wrapped models: those of Gemma-3's text were in `language_model.model` once,
    and are in `model.language_model`. Its own rules for reading old checkpoints hold for adapters, too; PEFT applies
    them to some names only.
    """
    base = model.get_base_model()
    if not isinstance(base, PreTrainedModel):
        return state
    renamings = [rule for rule in get_model_conversion_mapping(base) if isinstance(rule, WeightRenaming)]
    modules = {name for name, _ in base.named_modules()}
    known = {f"{name}.weight": True for name in modules}

    def rename(key: str) -> str:
        module, mark, rest = key.removeprefix(PREFIX).partition(".lora_")
        if module in modules or not mark:
            return key
        weight, _ = rename_source_key(f"{module}.weight", renamings, [], base.base_model_prefix, known)
        return f"{PREFIX}{weight.removesuffix('.weight')}.lora_{rest}"

    return {rename(key): tensor for key, tensor in state.items()}


@dataclass(frozen=True, slots=True)
class StoredTensors:
    """The names of the tensors of one parameter.

    Attributes:
        pieces: one entry if the parameter is stored whole, else one for each of its matrices: the tensors whose rows,
            one after another, are that matrix.
    """

    pieces: list[list[str]]

    def of(self, index: int) -> list[str]:
        return self.pieces[index if len(self.pieces) > 1 else 0]


def find_tensors(
    base: PreTrainedModel, parameters: Collection[str], stored: Collection[str]
) -> dict[str, StoredTensors]:
    """Return the tensors of each parameter that the names in a checkpoint give, without reading any.

    Transformers renames tensors, adds or removes the prefix of the base model, and joins the experts of a mixture and
    their gate and up projections. What it computes in other ways is left out.
    """
    rules = get_model_conversion_mapping(base)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    known = dict.fromkeys(parameters, True)
    found: dict[str, dict[str | None, list[str]]] = {}
    for name in sorted(stored, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, base.base_model_prefix, known)
        if target not in known:
            target, pattern = rename_source_key(name, [], [], base.base_model_prefix, known)
        found.setdefault(target, {}).setdefault(pattern, []).append(name)
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    tensors = {}
    for target, columns in found.items():
        first, rule = next(iter(columns.values())), by_pattern.get(next(iter(columns)) or "")
        if rule is None:
            tensors[target] = StoredTensors([first[:1]])
        elif _joins_experts(rule.operations):
            rows = zip(*(columns[pattern] for pattern in rule.source_patterns if pattern in columns), strict=True)
            tensors[target] = StoredTensors([list(row) for row in rows])
    return tensors


def _joins_experts(operations: list[ConversionOps]) -> bool:
    match operations:
        case [MergeModulelist(dim=0)] | [MergeModulelist(dim=0), Concatenate(dim=1)]:
            return True
    return False
