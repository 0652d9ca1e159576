"""A recipe's adapter section → a PeftModel, started as its method says."""

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import PreTrainedModel

from milora.method.adapter import InitializationReport, initialize_lora_milora_weights, start_layers
from milora.method.errors import MiloraError
from milora.method.layers import ready_layers
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
        use_rslora=section.method == "rslora",
        use_dora=section.method == "dora",
        init_lora_weights="mica" if section.method == "mica" else True,
        target_modules=section.target_modules,
        rank_pattern=dict(section.rank_pattern),
        alpha_pattern=dict(section.alpha_pattern),
        task_type=TaskType.CAUSAL_LM,
    )
    peft_model = get_peft_model(model, config)
    if section.method in ("pissa", "olora"):
        _start_as_peft_does(peft_model, section.method)
    if section.method != "milora":
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


@torch.no_grad()
def _start_as_peft_does(model: PeftModel, method: str) -> None:
    """Start from PEFT's own factors A₀, B₀ of PiSSA or OLoRA, in intact form: PEFT's change of the base is undone.

        y = W x + s·(B A − B₀ A₀) x

    One layer at a time, so that one weight stands twice.
    """
    layers = ready_layers(model, "default", "intact")
    factors = {}
    for name, layer in layers.items():
        if method == "olora" and layer.fan_in_fan_out:
            raise MiloraError(f"{name}: PEFT's OLoRA does not read Conv1D's transposed weights", "use method=pissa")
        weight = layer.get_base_layer().weight
        original = weight.data.clone()
        if method == "pissa":
            layer.pissa_init("default", "pissa")
        else:
            layer.olora_init("default")
        factors[name] = layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data
        weight.data = original
    start_layers(model, "default", layers, factors, "intact")


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
