"""A recipe → everything that the trainer needs: rows as tokens, the model with its adapter, a checkpoint to resume."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from peft import PeftModel
from transformers import DataCollatorForSeq2Seq, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from milora.data.processor import Pictures
from milora.data.rows import list_files
from milora.data.tokens import PICTURES
from milora.method.errors import MiloraError
from milora.method.loading import load_milora
from milora.method.options import Layout
from milora.method.variant.config import lora_config
from milora.models.base import added_ids, load_model, load_skeleton, load_tokenizer, unwrap
from milora.models.kernels import check_liger, use_liger
from milora.models.methods import Course, add_adapter
from milora.models.projector import (
    find_projector,
    freeze_outside,
    freeze_projector,
    load_aligned,
    with_projector,
)
from milora.models.targets import check_targets
from milora.run.directory import RunDirectory, locate_run
from milora.run.identity import Identity, identify
from milora.run.launch import count_processes, fail_together, is_main_process, name_launcher
from milora.run.recipe import Recipe
from milora.run.records import Start
from milora.training.arguments import check_optimizer, check_reporting, count_steps, micro_batch_size
from milora.training.attention import choose_layout
from milora.training.checkpoints import can_resume, find_checkpoint
from milora.training.estimate import check_space
from milora.training.pixels import PictureCollator
from milora.training.rows import Rows, check_embedded, find_pictures, prepare_rows

Trained: TypeAlias = PreTrainedModel | PeftModel
Inputs: TypeAlias = tuple[PreTrainedTokenizerBase, Pictures | None, Rows]


@dataclass(frozen=True, slots=True)
class Preparation:
    """What a training starts from; `checkpoint` is where it resumes, None at its start.

    `trainable` and `total` count parameters, before a launcher shards them. `layout` is that of rows in a pass.
    `collator` makes batches if rows have pictures. `projector` is that of the model and its learning rate, None unless
    it is trained.
    """

    model: Trained
    trainable: int
    total: int
    tokenizer: PreTrainedTokenizerBase
    rows: Rows
    layout: Layout
    checkpoint: Path | None
    collator: PictureCollator | None = None
    projector: tuple[str, float] | None = None


def locate(recipe: Recipe, root: Path) -> RunDirectory:
    """Return the run directory of a recipe under `root`, whether it exists or not.

    Raises:
        MiloraError: a local data file does not exist.
    """
    return locate_run(recipe, identify_stages(recipe), root)


def identify_stages(recipe: Recipe) -> Identity:
    """Return the identity of a recipe's training, of which that of its first stage is a part.

    Raises:
        MiloraError: a local data file does not exist.
    """
    first = recipe.first_stage
    return identify(recipe, list_files(recipe.data), identify_stages(first) if first else None)


def prepare(run: RunDirectory, inputs: Inputs, cache: Path | None = None, aligned: Path | None = None) -> Preparation:
    """Load the model, and start or resume the adapter. Seeds are set before the adapter is made.

    `inputs` is what `prepare_inputs` returned; `cache` is a folder of factors, see `decompose_layers`; `aligned` is the
    adapter of the first stage.

    Raises:
        MiloraError: something that the recipe names does not exist, or the recipe or the launch does not fit.
    """
    recipe = run.recipe
    tokenizer, pictures, rows = inputs
    micro_batch = micro_batch_size(recipe)
    is_full = recipe.adapter.method == "full"
    with fail_together():
        set_seed(recipe.seed)
        # Full fine-tuning keeps its weights in float32: in bfloat16 most of its small steps would round away.
        base = load_model(recipe.model.model_copy(update={"dtype": "float32"}) if is_full else recipe.model)
        if recipe.training.liger_kernels:
            use_liger(base)
    if aligned is not None:
        load_aligned(base, aligned)
    planned = count_steps(recipe, len(rows.train))
    if not can_resume(recipe) and is_main_process():
        shutil.rmtree(run.checkpoints, ignore_errors=True)
    checkpoint = find_checkpoint(run, planned)
    collator = PictureCollator(tokenizer, pictures, micro_batch) if pictures and rows.has_pictures else None
    course = Course(planned, rows.train, collator.whole if collator else DataCollatorForSeq2Seq(tokenizer), micro_batch)
    model = _start(run, base, checkpoint, course, cache)
    projector = _rate_of_projector(recipe, model)
    with fail_together():
        check_space(run.path, model.num_parameters(only_trainable=True))
    is_packed = recipe.training.packing and collator is None
    layout = choose_layout(model, rows.report.longest) if is_packed else "padded"
    trainable, total = model.num_parameters(only_trainable=True), model.num_parameters()
    return Preparation(model, trainable, total, tokenizer, rows, layout, checkpoint, collator, projector)


def prepare_inputs(recipe: Recipe, cache: Path | None = None) -> Inputs:
    """Return what is known before the model is loaded: its tokenizer, what pictures become, and the rows.

    Raises:
        MiloraError: something that the recipe names does not exist, or the recipe or the launch does not fit.
    """
    check_launch(recipe)
    check_reporting(recipe.training.report_to)
    check_optimizer(recipe.training.optimizer)
    micro_batch_size(recipe)
    with fail_together():
        check_targets(recipe.model, recipe.adapter)
        if recipe.saves_projector:
            find_projector(load_skeleton(recipe.model))
        tokenizer, pictures = load_tokenizer(recipe.model), find_pictures(recipe.model)
        rows = prepare_rows(recipe, tokenizer, cache, pictures)
        check_embedded(rows.train, recipe, tokenizer)
        check_pictures_of(recipe, rows)
    return tokenizer, pictures, rows


def _start(
    run: RunDirectory, base: PreTrainedModel, checkpoint: Path | None, course: Course, cache: Path | None
) -> Trained:
    recipe = run.recipe
    if checkpoint is not None and recipe.adapter.has_initial_factors:
        return load_milora(base, checkpoint, form=recipe.adapter.form, is_trainable=True)
    started = time.perf_counter()
    model: Trained = base
    if recipe.adapter.method == "full":
        freeze_outside(base, projector=recipe.training.projector_learning_rate is not None)
    else:
        model, report = add_adapter(
            base,
            with_projector(recipe, base),
            recipe.seed,
            jobs=torch.get_num_threads(),
            cache=cache,
            course=course,
            tokens=added_ids(recipe.model, load_tokenizer(recipe.model)) if recipe.model.added_tokens else (),
        )
        lora_config(model, "default").revision = recipe.model.revision
        if report is not None:
            run.write(report)
    if checkpoint is None:
        run.write(Start(time.perf_counter() - started))
    return model


def _rate_of_projector(recipe: Recipe, model: Trained) -> tuple[str, float] | None:
    """Return the name of the projector and its learning rate; one that is not trained in this stage is frozen."""
    rate = recipe.training.projector_learning_rate
    if recipe.adapter.method == "projector":
        rate = recipe.training.learning_rate
    if not recipe.saves_projector:
        return None
    if rate is None and isinstance(model, PeftModel):
        freeze_projector(model)
    return (find_projector(unwrap(model)), rate) if rate else None


def check_pictures_of(recipe: Recipe, rows: Rows) -> None:
    """Raise if the projector would be trained without a picture, or processes would wait for each other."""
    tables = [table for table in (rows.train, rows.held_out) if table and PICTURES in table.column_names]
    launcher = name_launcher()
    if launcher in ("fsdp2", "zero3") and count_processes() > 1 and not all(all(table[PICTURES]) for table in tables):
        raise MiloraError(
            f"some rows have pictures and others have none: {launcher} shards the weights that see pictures, and the "
            "processes would wait for each other",
            "launch it with ddp or zero2, or name rows that all have pictures",
        )
    if recipe.saves_projector and PICTURES not in rows.train.column_names:
        raise MiloraError(
            f"no row of {recipe.data.title} has a picture, and the projector would not be trained",
            "name rows with pictures, or leave training.projector_learning_rate and alignment out",
        )


def check_launch(recipe: Recipe) -> None:
    """Raise unless the recipe can be trained on this machine, under this launcher."""
    launcher = name_launcher()
    if recipe.model.dtype == "float16" and not torch.accelerator.is_available():
        raise MiloraError(
            "model.dtype=float16 is trained with loss scaling, which needs a GPU", "set model.dtype=bfloat16 or float32"
        )
    if recipe.training.activation_offloading and not torch.accelerator.is_available():
        raise MiloraError(
            "training.activation_offloading moves activations from an accelerator, and there is no accelerator",
            "leave it out, or set training.activation_checkpointing=true",
        )
    if recipe.training.liger_kernels:
        check_liger()
    if launcher == "fsdp1":
        raise MiloraError(
            "FSDP's first version is not supported", "set fsdp_version: 2, as `milora launcher fsdp2` does"
        )
    if launcher == "ddp":
        return
    if recipe.adapter.method == "adalora":
        raise MiloraError(
            f"AdaLoRA reads whole gradients, which {launcher} shards", "launch it with ddp, or on one process"
        )
    if recipe.model.quantization:
        raise MiloraError(
            f"model.quantization={recipe.model.quantization}: {launcher} does not shard quantized weights",
            "launch it with ddp, or on one process",
        )
