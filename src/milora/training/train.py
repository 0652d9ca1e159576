"""A recipe → a trained adapter in its run directory."""

import copy
import math
import os
import resource
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, PeftModel
from peft.optimizers import create_loraplus_optimizer
from safetensors import safe_open
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl import SFTConfig, SFTTrainer

from milora.method.analysis import measure_change, measure_full_change, measure_spectra
from milora.method.checkpoint import load_milora
from milora.method.errors import MiloraError
from milora.run.data import load_training_rows
from milora.run.directory import RunDirectory
from milora.run.models import load_model, load_tokenizer
from milora.run.prompts import PROMPTS
from milora.run.recipe import Recipe
from milora.training.adapter import Course, add_adapter, check_targets
from milora.training.progress import ProgressBar
from milora.training.tokens import tokenize_rows

START = "start.json"
COMPLETE = "complete"  # a file of this name says that a checkpoint was written whole


def train(run: RunDirectory) -> None:
    """Train the run's adapter, from its last whole checkpoint if there is one; return at once if it is trained.

    A run that was killed ends with the same adapter as one that was not: seeds are set before the adapter is made,
    and a checkpoint holds the optimiser, the schedule, the data order and the random state.

    Raises:
        MiloraError: whatever the recipe names does not exist or does not fit.
    """
    if run.is_trained:
        return
    recipe = run.recipe
    check_targets(recipe.model, recipe.adapter)
    rows, held_out = load_training_rows(recipe.data)
    tokenizer = load_tokenizer(recipe.model)
    prompt, settings = PROMPTS[recipe.data.prompt], recipe.training
    train_set, report = tokenize_rows(rows, prompt, tokenizer, max_length=settings.max_length, loss_on=settings.loss_on)
    held_out_set, _ = tokenize_rows(
        held_out, prompt, tokenizer, max_length=settings.max_length, loss_on=settings.loss_on
    )

    set_seed(recipe.seed)
    # Full fine-tuning keeps its weights in float32: in bfloat16 most of its small steps would round away.
    is_full, is_adalora = recipe.adapter.method == "full", recipe.adapter.method == "adalora"
    model = load_model(recipe.model.model_copy(update={"dtype": "float32"}) if is_full else recipe.model)
    planned = _count_steps(recipe, len(train_set))
    _remove_unusable(run.checkpoints, planned)
    if is_adalora:
        # PEFT saves no allocator: a killed run starts over, and ends the same.
        shutil.rmtree(run.checkpoints, ignore_errors=True)
    checkpoint = _last_checkpoint(run.checkpoints)
    if checkpoint is None:
        run.write("spectra.json", measure_spectra(model))
    peft_model: PreTrainedModel | PeftModel
    if is_full:
        peft_model, initialization_seconds = model, 0.0
    elif checkpoint is not None and recipe.adapter.has_initial_factors:
        peft_model = load_milora(model, checkpoint, base=recipe.adapter.base, is_trainable=True)
    else:
        started = time.perf_counter()
        course = Course(planned, train_set, DataCollatorForSeq2Seq(tokenizer), _micro_batch(recipe))
        peft_model, initialization = add_adapter(
            model, recipe.adapter, recipe.seed, jobs=torch.get_num_threads(), course=course
        )
        initialization_seconds = time.perf_counter() - started
        if initialization is not None:
            run.write("initialization.json", asdict(initialization))

    _check_space(run.path, peft_model)
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run.path / "tensorboard")  # transformers' one way to say where
    trainer = SFTTrainer(
        model=peft_model,
        args=_arguments(recipe, run),
        train_dataset=train_set,
        eval_dataset=held_out_set if held_out else None,
        processing_class=tokenizer,
        callbacks=[ProgressBar(), CompletionMark(), *([RankAllocation()] if is_adalora else [])],
        optimizers=(_loraplus(peft_model, recipe), None),
    )
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    if checkpoint is None:
        loss = _held_out_loss(trainer) if held_out else None
        run.write(START, {"initialization_seconds": initialization_seconds, "held_out_loss": loss})
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds = time.perf_counter() - started
    if is_full:
        save_tuned(run, peft_model, tokenizer)
    else:
        peft_model.save_pretrained(str(run.adapter))
    start = run.read(START)
    resumed_at = _step(checkpoint) if checkpoint else 0
    steps = trainer.state.global_step
    run.write(
        run.training.name,
        {
            "seconds": seconds,  # since it was resumed
            "resumed_at": resumed_at,
            "steps": steps,
            "seconds_per_step": seconds / (steps - resumed_at),
            "tokens_per_step": trainer.state.num_input_tokens_seen / steps,
            "initialization_seconds": start["initialization_seconds"],
            "peak_memory": _peak_memory(),
            "weight_change": (
                measure_full_change(peft_model, load_model(recipe.model)) if is_full else measure_change(peft_model)
            ),
            "kept_step": trainer.state.best_global_step or steps,
            "data": asdict(report),
            "parameters": {**_count(peft_model), "stored": _count_stored(run.trained)},
            "held_out_loss": [start["held_out_loss"], _held_out_loss(trainer)] if held_out else None,
            "losses": [
                {"step": entry["step"], "loss": entry["loss"]} for entry in trainer.state.log_history if "loss" in entry
            ],
        },
    )
    shutil.rmtree(run.checkpoints, ignore_errors=True)


def save_tuned(run: RunDirectory, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a whole tuned model in the dtype in which its base is loaded."""
    copy.deepcopy(model).to(getattr(torch, run.recipe.model.dtype)).save_pretrained(str(run.trained))
    tokenizer.save_pretrained(str(run.trained))


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


class CompletionMark(TrainerCallback):
    """Marks each checkpoint once the trainer has written all of it."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            (Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / COMPLETE).touch()


def _remove_unusable(folder: Path, planned: int) -> None:
    """Delete what training cannot go on from, lest the trainer's own rotation counts it.

    That is a checkpoint which a killed process left half-written, and the last step's: resumed there, in the middle of
    an epoch, the trainer takes one step more.
    """
    for path in folder.glob("checkpoint-*"):
        if not (path / COMPLETE).is_file() or _step(path) >= planned:
            shutil.rmtree(path)


def _last_checkpoint(folder: Path) -> Path | None:
    return max(folder.glob("checkpoint-*"), key=_step, default=None)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _check_space(folder: Path, model: PreTrainedModel | PeftModel) -> None:
    # A checkpoint holds the factors, as many initial ones and two moments; three may stand at once, then the exports.
    needed = 16 * 4 * _count(model)["trainable"]
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise MiloraError(
            f"{folder} has {free / 1e6:.0f} MB of free disk space, and this run may need {needed / 1e6:.0f} MB",
            "free some, lower adapter.rank, or choose another folder with --runs",
        )


def _arguments(recipe: Recipe, run: RunDirectory) -> SFTConfig:
    settings = recipe.training
    micro_batch = _micro_batch(recipe)
    best = settings.keep == "best"
    return SFTConfig(
        output_dir=str(run.checkpoints),
        seed=recipe.seed,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        per_device_train_batch_size=micro_batch,
        per_device_eval_batch_size=micro_batch,
        gradient_accumulation_steps=settings.batch_size // micro_batch,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        max_length=None,  # tokenize_rows has cut already, and counted
        save_steps=settings.save_steps,
        save_total_limit=2,
        eval_strategy="steps" if best else "no",
        eval_steps=settings.save_steps,
        load_best_model_at_end=best,
        metric_for_best_model="eval_loss" if best else None,
        logging_steps=settings.log_steps,
        report_to=settings.report_to,
        include_num_input_tokens_seen="non_padding",
        activation_checkpointing=settings.activation_checkpointing,
        disable_tqdm=True,
        # The model computes in its own dtype, adapters in float32; full fine-tuning's float32 weights under autocast.
        bf16=recipe.adapter.method == "full" and recipe.model.dtype == "bfloat16",
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _loraplus(model: PreTrainedModel | PeftModel, recipe: Recipe) -> torch.optim.Optimizer | None:
    """LoRA+'s AdamW, with B's learning rate a multiple of A's; None, the trainer's own, for every other method."""
    if recipe.adapter.method != "loraplus":
        return None
    settings = recipe.training
    return create_loraplus_optimizer(  # type: ignore[no-any-return]
        model,
        torch.optim.AdamW,
        lr=settings.learning_rate,
        loraplus_lr_ratio=recipe.adapter.loraplus_ratio,
        loraplus_weight_decay=settings.weight_decay,
    )


def _held_out_loss(trainer: SFTTrainer) -> float:
    """Cross-entropy alone: AdaLoRA adds a penalty to whatever loss it returns, in evaluation too."""
    config = trainer.model.active_peft_config if isinstance(trainer.model, PeftModel) else None
    if not isinstance(config, AdaLoraConfig):
        return float(trainer.evaluate()["eval_loss"])
    penalty, config.orth_reg_weight = config.orth_reg_weight, 0.0
    loss = float(trainer.evaluate()["eval_loss"])
    config.orth_reg_weight = penalty
    return loss


def _count(model: PreTrainedModel | PeftModel) -> dict[str, int]:
    return {"trainable": model.num_parameters(only_trainable=True), "total": model.num_parameters()}


def _count_steps(recipe: Recipe, rows: int) -> int:
    settings = recipe.training
    return settings.max_steps or math.ceil(math.ceil(rows / settings.batch_size) * settings.epochs)


def _micro_batch(recipe: Recipe) -> int:
    return recipe.training.micro_batch_size or recipe.training.batch_size


def _count_stored(folder: Path) -> int:
    """Numbers in what was saved, initial factors and all."""
    stored = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            stored += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return stored


def _peak_memory() -> int:
    """Bytes: allocated on the GPU, or of the whole process where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
