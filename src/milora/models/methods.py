"""A recipe's adapter section → a PeftModel, started as its method says."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import AdaLoraConfig, LoraConfig, LoraGAConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.loraga import preprocess_loraga
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from milora.method.errors import MiloraError
from milora.method.factors import decompose_together
from milora.method.initialization import InitializationReport, initialize_lora_milora_weights, start_layers
from milora.method.layers import MARK, UNCERTIFIED, ready_layers
from milora.models.base import linear_names
from milora.run.recipe import AdapterSection, ModelSection

GRADIENT_ROWS = 64
MINIMUM_ADALORA_STEPS = 5


@dataclass(frozen=True, slots=True)
class Course:
    """What some methods must know of the training to come: its optimiser steps, and its first rows as tokens."""

    steps: int
    rows: datasets.Dataset
    collate: Callable[[list[Any]], dict[str, Tensor]]
    micro_batch_size: int


def add_adapter(
    model: PreTrainedModel,
    section: AdapterSection,
    seed: int,
    *,
    jobs: int,
    cache: Path | None = None,
    course: Course | None = None,
) -> tuple[PeftModel, InitializationReport | None]:
    """Put the section's adapter on a model. Seed first: LoRA draws A at random. AdaLoRA and LoRA-GA need the `course`.

    Raises:
        MiloraError: target modules that the model does not have, or what `initialize_lora_milora_weights` refuses.
    """
    if section.method == "adalora":
        assert course is not None
        return get_peft_model(model, _configure_adalora(section, course.steps)), None
    peft_model = get_peft_model(model, make_config(section))
    if section.method == "lora_ga":
        assert course is not None
        _estimate_gradients(peft_model, course)
    if section.method in ("pissa", "olora", "lora_ga"):
        _start_as_peft_does(peft_model, section.method)
    if section.method != "milora":
        return peft_model, None
    report = initialize_lora_milora_weights(
        peft_model,
        components=section.components,
        form=section.form,
        weighting=section.weighting,
        seed=seed,
        jobs=jobs,
        cache=cache,
    )
    return peft_model, report


def make_config(section: AdapterSection) -> LoraConfig:
    """Return PEFT's config of the section's adapter, AdaLoRA's excepted."""
    return LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha or section.rank,
        lora_dropout=section.dropout,
        use_rslora=section.method == "rslora",
        use_dora=section.method == "dora",
        init_lora_weights="mica" if section.method == "mica" else True,
        target_modules=section.target_modules,
        rank_pattern=dict(section.rank_pattern),
        alpha_pattern=dict(section.alpha_pattern),
        task_type=TaskType.CAUSAL_LM,
    )


def _configure_adalora(section: AdapterSection, steps: int) -> AdaLoraConfig:
    """From one and a half times the rank down to the rank on average, between a tenth and four fifths of the steps.

    The ratio is that of AdaLoRA's own experiments (Zhang et al. 2023, section 4); where the schedule lies is ours.
    """
    if steps < MINIMUM_ADALORA_STEPS:
        raise MiloraError(
            f"AdaLoRA has {steps} steps to find its ranks in, and needs {MINIMUM_ADALORA_STEPS}",
            "raise training.max_steps or training.epochs",
        )
    return AdaLoraConfig(
        init_r=-(-3 * section.rank // 2),
        target_r=section.rank,
        tinit=steps // 10,
        tfinal=max(1, steps // 5),
        deltaT=max(1, steps // 100),
        total_step=steps,
        lora_alpha=section.alpha or section.rank,
        lora_dropout=section.dropout,
        target_modules=section.target_modules,
        task_type=TaskType.CAUSAL_LM,
    )


def _estimate_gradients(model: PeftModel, course: Course) -> None:
    """Leave the loss' gradient on each base weight, where PEFT's LoRA-GA looks for it: of the first training rows."""

    def pass_rows() -> None:
        rows = [course.rows[index] for index in range(min(GRADIENT_ROWS, len(course.rows)))]
        for start in range(0, len(rows), course.micro_batch_size):
            batch = course.collate(rows[start : start + course.micro_batch_size])
            model(**{name: tensor.to(model.device) for name, tensor in batch.items()}).loss.backward()

    config = LoraConfig(target_modules=r".*\.base_layer", lora_ga_config=LoraGAConfig(), init_lora_weights="lora_ga")
    with warnings.catch_warnings():
        # PEFT's hooks count passes, and torch remarks that nothing below the first layers asks for a gradient.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        preprocess_loraga(model.base_model.model, config, pass_rows)


@torch.no_grad()
def _start_as_peft_does(model: PeftModel, method: str) -> None:
    """Start from PEFT's own factors A₀, B₀ of PiSSA, OLoRA or LoRA-GA in intact form: its change of W is undone.

    y = W x + s·(B A − B₀ A₀) x
    """
    layers = ready_layers(model, "default", "intact")
    for name, layer in layers.items():
        if method == "olora" and layer.fan_in_fan_out:
            raise MiloraError(f"{name}: PEFT's OLoRA does not read Conv1D's transposed weights", "use method=pissa")
    factors = decompose_together(
        layers, lambda share: {name: _factors_of_peft(layer, method) for name, layer in share.items()}
    )
    start_layers(model, "default", layers, factors, "intact", UNCERTIFIED if method == "lora_ga" else MARK)


def _factors_of_peft(layer: LoraLinear, method: str) -> tuple[Tensor, Tensor]:
    """One layer's, so that one weight stands twice."""
    weight = layer.get_base_layer().weight
    original = weight.data.clone()
    if method == "pissa":
        layer.pissa_init("default", "pissa")
    elif method == "olora":
        layer.olora_init("default")
    else:
        # Its SVD draws at random: from the seed for every layer, whatever process has it and whatever that had before.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch.initial_seed())
            layer.lora_ga_init("default", LoraGAConfig())
    weight.data = original
    return layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data


class RankAllocation(TrainerCallback):
    """Drives AdaLoRA's schedule: the importance of each rank, the budget, and in the end the final ranks."""

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PeftModel | None = None,
        **_: Any,
    ) -> None:
        assert model is not None
        model.base_model.update_and_allocate(state.global_step)


def check_targets(model: ModelSection, adapter: AdapterSection) -> None:
    """Raise unless every named target module is a linear layer of the model, before its weights are loaded."""
    if isinstance(adapter.target_modules, str):
        return  # "all-linear", or a regular expression that PEFT matches
    known = linear_names(model)
    unknown = [name for name in adapter.target_modules if name.rpartition(".")[2] not in known]
    if unknown:
        raise MiloraError(
            f"adapter.target_modules: {', '.join(unknown)} is not a linear layer of {model.name}",
            f"it has {', '.join(known)}",
        )
