"""The projector of a model that takes pictures: the module between its vision tower and its language model."""

from pathlib import Path

from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from milora.method.errors import MiloraError
from milora.models.vision import find_language_model
from milora.run.recipe import Recipe
from milora.run.sections import AdapterSection

# Of LLaVA, Gemma, Mistral and others; Qwen-VL; SmolVLM and Idefics; Janus and Aria.
NAMES = ("multi_modal_projector", "merger", "connector", "aligner", "mm_projector")
PREFIX = "base_model.model."


def find_projector(model: PreTrainedModel) -> str:
    """Return the name of the projector's module.

    Raises:
        MiloraError: the model has none by the usual names.
    """
    found = [str(name) for name, _ in model.named_modules() if name.rpartition(".")[2] in NAMES]
    if not found or find_language_model(model) is None:
        raise MiloraError(
            f"a model of type {model.config.model_type} has no projector that is called {', '.join(NAMES)}",
            "leave training.projector_learning_rate and alignment out, or name a model that takes pictures",
        )
    return found[0]


def with_projector(recipe: Recipe, model: PreTrainedModel) -> AdapterSection:
    """Return the recipe's adapter, with which the projector is saved if it is trained in this stage or the first."""
    if not recipe.saves_projector:
        return recipe.adapter
    modules = [*recipe.adapter.modules_to_save, find_projector(model)]
    return recipe.adapter.model_copy(update={"modules_to_save": list(dict.fromkeys(modules))})


def load_aligned(model: PreTrainedModel, adapter: Path) -> None:
    """Give a model the projector that a first stage has trained."""
    prefix = f"{PREFIX}{find_projector(model)}."
    stored = load_file(adapter / SAFETENSORS_WEIGHTS_NAME)
    state = {name.removeprefix(prefix): tensor for name, tensor in stored.items() if name.startswith(prefix)}
    model.get_submodule(find_projector(model)).load_state_dict(state)


def freeze_outside(model: PreTrainedModel, *, projector: bool) -> None:
    """Freeze all of a model that takes pictures but its language model, and the `projector` if that is trained."""
    language = find_language_model(model)
    if language is None:
        return
    kept = (f"{language}.", "lm_head.", *([f"{find_projector(model)}."] if projector else []))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(kept))


def freeze_projector(model: PeftModel) -> None:
    """Keep a projector as the first stage left it: it is saved with the adapter, and not trained."""
    name = find_projector(model.get_base_model())  # type: ignore[arg-type]
    module: nn.Module = model.get_submodule(f"{PREFIX}{name}")
    module.requires_grad_(False)
