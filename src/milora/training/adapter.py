"""A recipe's adapter section → a PeftModel, started as its method says."""

from pathlib import Path

from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import PreTrainedModel

from milora.method.adapter import InitializationReport, initialize_lora_milora_weights
from milora.method.errors import MiloraError
from milora.run.models import linear_names
from milora.run.recipe import AdapterSection, ModelSection


def add_adapter(
    model: PreTrainedModel, section: AdapterSection, seed: int, *, jobs: int, cache: Path | None = None
) -> tuple[PeftModel, InitializationReport | None]:
    """Put the section's adapter on a model. Seed first: LoRA draws A at random.

    Raises:
        MiloraError: target modules that the model does not have, or what `initialize_lora_milora_weights` refuses.
    """
    alpha = section.alpha or section.rank
    config = LoraConfig(
        r=section.rank,
        lora_alpha=alpha,
        lora_dropout=section.dropout,
        use_rslora=section.rslora,
        target_modules=section.target_modules,
        rank_pattern=dict(section.rank_pattern),
        alpha_pattern=dict(section.alpha_pattern),
        task_type=TaskType.CAUSAL_LM,
    )
    peft_model = get_peft_model(model, config)
    if section.method == "lora":
        return peft_model, None
    report = initialize_lora_milora_weights(
        peft_model,
        components=section.components,
        base=section.base,
        scale=section.scale,
        seed=seed,
        jobs=jobs,
        cache=cache,
    )
    return peft_model, report


def check_targets(model: ModelSection, adapter: AdapterSection) -> None:
    """Raise unless every named target module is a linear layer of the model, before its weights are loaded."""
    if isinstance(adapter.target_modules, str):
        return  # "all-linear", or a regular expression that PEFT matches
    known = linear_names(model)
    unknown = [name for name in adapter.target_modules if name.rpartition(".")[2] not in known]
    if unknown:
        raise MiloraError(
            f"adapter.target_modules: {', '.join(unknown)} is no linear layer of {model.name}",
            f"it has {', '.join(known)}",
        )
