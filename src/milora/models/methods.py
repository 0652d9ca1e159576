"""Puts the adapter of a recipe on a model and initializes it by the recipe's method."""

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import AdaLoraConfig, AdaLoraModel, LoraConfig, LoraGAConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import ParamWrapper, preprocess_loraga
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from milora.method.errors import MiloraError
from milora.method.factors import decompose_together
from milora.method.initialization import InitializationReport, initialize_lora_milora_weights, start_layers
from milora.method.layers import ready_layers
from milora.method.variant.weights import base_weight, is_transposed, trained_factors
from milora.models.failures import one_line
from milora.models.vision import find_language_model
from milora.run.sections import AdapterSection

if TYPE_CHECKING:
    import datasets  # of the extra `train`, and milora init does not need it

ALL_LINEAR = "all-linear"
GRADIENT_ROWS = 64
MINIMUM_ADALORA_STEPS = 5


@dataclass(frozen=True, slots=True)
class Course:
    """What some methods need to know about the training: its optimizer steps, and its first rows as tokens."""

    steps: int
    rows: "datasets.Dataset"
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
    tokens: Sequence[int] = (),
) -> tuple[PeftModel, InitializationReport | None]:
    """Put the section's adapter on a model and initialize it; the embeddings of `tokens` are trained with it.

    torch must be seeded before, because LoRA draws A at random. AdaLoRA and LoRA-GA need the `course`.

    Raises:
        MiloraError: the model does not have the target modules, or see `initialize_lora_milora_weights`.
    """
    if section.method == "adalora":
        assert course is not None
        return put_adapter(model, _configure_adalora(section, course.steps), tokens), None
    peft_model = put_adapter(model, make_config(section), tokens)
    if section.method == "projector":
        return peft_model, None
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
        unsupported=section.unsupported,
        seed=seed,
        jobs=jobs,
        cache=cache,
    )
    return peft_model, report


def make_config(section: AdapterSection) -> LoraConfig:
    """Return PEFT's config of the section's adapter, for all methods except AdaLoRA."""
    return LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha or section.rank,
        lora_dropout=section.dropout,
        use_rslora=section.method == "rslora" or section.rslora,
        use_dora=section.method == "dora",
        init_lora_weights="mica" if section.method == "mica" else True,
        rank_pattern=dict(section.rank_pattern),
        alpha_pattern=dict(section.alpha_pattern),
        **_choose_weights(section),
    )


def put_adapter(
    model: PreTrainedModel, config: LoraConfig, tokens: Sequence[int] = (), *, revision: str | None = None
) -> PeftModel:
    """Return PEFT's model with a new adapter "default", which also trains the embeddings of `tokens`.

    `revision` is that of the base, which the adapter's config then names.

    Raises:
        MiloraError: PEFT refuses it.
    """
    if tokens:
        ends = (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[no-untyped-call]
        tied = model.config.get_text_config().tie_word_embeddings  # PEFT then trains one row for both
        names = {id(module): name for name, module in model.named_modules()}
        config.trainable_token_indices = {names[id(end)]: list(tokens) for end in ends[: 1 if tied else 2]}
    _keep_to_language(model, config)
    try:
        return get_peft_model(model, config, revision=revision)
    except ValueError as error:
        if config.lora_dropout and "ParamWrapper" in str(error):
            raise MiloraError(
                f"adapter.dropout={config.lora_dropout}: PEFT has no dropout for the weights of experts",
                "set adapter.dropout=0, or leave the experts out of the targets",
            ) from error
        raise MiloraError(f"PEFT refuses the adapter: {one_line(error)}", "choose other target modules") from error


def _keep_to_language(model: PreTrainedModel, config: LoraConfig) -> None:
    """Exclude everything outside the language model of a model that takes pictures.

    Names of modules, and all-linear, also fit the vision tower. An expression is matched with whole names: what it
    matches is meant.
    """
    language, targets = find_language_model(model), config.target_modules
    if language is None or (isinstance(targets, str) and targets != ALL_LINEAR):
        return
    outside = rf"(?!{re.escape(language)}\.|lm_head).*"
    own = config.exclude_modules or []
    said = [own] if isinstance(own, str) else [rf"(.*\.)?{re.escape(name)}" for name in sorted(own)]
    config.exclude_modules = "|".join([outside, *said])


def _choose_weights(section: AdapterSection) -> dict[str, Any]:
    """The options of PEFT that say which weights are trained."""
    return {
        # PEFT's way to say that no layer has an adapter.
        "target_modules": DUMMY_TARGET_MODULES if section.method == "projector" else section.target_modules,
        "exclude_modules": section.exclude_modules,
        "target_parameters": section.target_parameters or None,
        "layers_to_transform": section.layers_to_transform,
        "modules_to_save": section.modules_to_save or None,
        "task_type": TaskType.CAUSAL_LM,
    }


def _configure_adalora(section: AdapterSection, steps: int) -> AdaLoraConfig:
    """Return a config that prunes from 1.5 times the rank to the rank on average, from 10 % to 80 % of the steps.

    The ratio is that of AdaLoRA's own experiments (Zhang et al. 2023, section 4); the steps of the schedule are ours.

    Raises:
        MiloraError: there are too few steps.
    """
    if steps < MINIMUM_ADALORA_STEPS:
        raise MiloraError(
            f"AdaLoRA needs at least {MINIMUM_ADALORA_STEPS} steps to find its ranks, and has {steps}",
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
        **_choose_weights(section),
    )


def _estimate_gradients(model: PeftModel, course: Course) -> None:
    """Store the gradient of the loss on the first training rows at each base weight, where PEFT's LoRA-GA reads it."""

    def pass_rows() -> None:
        rows = [course.rows[index] for index in range(min(GRADIENT_ROWS, len(course.rows)))]
        for start in range(0, len(rows), course.micro_batch_size):
            batch = course.collate(rows[start : start + course.micro_batch_size])
            model(**{name: tensor.to(model.device) for name, tensor in batch.items()}).loss.backward()

    config = LoraConfig(
        target_modules=r".*\.base_layer",
        lora_ga_config=LoraGAConfig(),
        init_lora_weights="lora_ga",  # type: ignore[arg-type]  # PEFT's annotation lacks its own word
    )
    with warnings.catch_warnings():
        # PEFT's hooks count passes, and torch warns that no input of the first layers requires a gradient.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        preprocess_loraga(cast(nn.Module, model.base_model.model), config, pass_rows)
    layers = ready_layers(model, "default", "intact")
    unreached = [name for name, layer in layers.items() if not _has_gradient(layer.get_base_layer())]
    if unreached:
        raise MiloraError(
            f"no gradient of the first {GRADIENT_ROWS} rows reaches {len(unreached)} of {len(layers)} layers "
            f"({unreached[0]} …), and LoRA-GA starts from gradients",
            "take them out of adapter.target_modules",
        )


def _has_gradient(layer: nn.Module) -> bool:
    # PEFT would start a layer without one as an ordinary LoRA, without notice.
    gradient: Tensor | None = getattr(layer, "_peft_loraga_grad", None)
    return gradient is not None and bool(gradient.any())


@torch.no_grad()
def _start_as_peft_does(model: PeftModel, method: str) -> None:
    """Start from PEFT's own factors A₀, B₀ of PiSSA, OLoRA or LoRA-GA in intact form: PEFT's change of W is undone.

    y = W x + s·(B A − B₀ A₀) x
    """
    layers = ready_layers(model, "default", "intact")
    for name, layer in layers.items():
        if isinstance(layer, ParamWrapper):
            raise MiloraError(f"{name}: PEFT's {method} does not support experts", "take them out of the targets")
        if method == "olora" and is_transposed(layer):
            raise MiloraError(
                f"{name}: PEFT's OLoRA does not support the transposed weights of Conv1D", "use method=pissa"
            )
    factors = decompose_together(
        layers, lambda shard: {name: _factors_of_peft(cast(LoraLinear, layer), method) for name, layer in shard.items()}
    )
    start_layers(model, "default", layers, factors, "intact", certified=method != "lora_ga")


def _factors_of_peft(layer: LoraLinear, method: str) -> tuple[Tensor, Tensor]:
    """Return A₀ and B₀ of one layer; only one weight is copied at a time."""
    weight = base_weight(layer)
    original = weight.data.clone()
    if method == "pissa":
        layer.pissa_init("default", "pissa")  # type: ignore[no-untyped-call]
    elif method == "olora":
        layer.olora_init("default")  # type: ignore[no-untyped-call]
    else:
        # Its SVD draws at random. Every layer starts from the seed, so that it does not depend on the layers before it.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch.initial_seed())
            layer.lora_ga_init("default", LoraGAConfig())  # type: ignore[no-untyped-call]
    weight.data = original
    A, B = trained_factors(layer, "default")
    return A.data, B.data


class RankAllocation(TrainerCallback):
    """Drives the schedule of AdaLoRA: the importance of each rank, the budget, and the final ranks."""

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PeftModel | None = None,
        **_: Any,
    ) -> None:
        assert model is not None
        adalora = cast(AdaLoraModel, model.base_model)
        adalora.update_and_allocate(state.global_step)  # type: ignore[no-untyped-call]
