"""The names of layers in files that were made with earlier versions of transformers."""

from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

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
