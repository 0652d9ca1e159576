"""A recipe → a trained adapter in its run directory."""

import math
import os
import resource
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor
from transformers import DataCollatorForSeq2Seq, PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from milora.method.analysis import measure_change, measure_full_change, measure_spectra
from milora.method.loading import load_milora
from milora.method.errors import MiloraError
from milora.method.variant import keep_initial_factors
from milora.data.rows import load_training_rows
from milora.run.directory import RunDirectory
from milora.run.launch import count_processes, fail_together, is_main_process, name_engine, wait_for_all
from milora.models.base import attach_adapter, load_model, load_tokenizer
from milora.data.templates import PROMPTS
from milora.run.recipe import Recipe
from milora.models.methods import Course, RankAllocation, add_adapter, check_targets
from milora.training.arguments import count_steps, make_arguments, micro_batch_size
from milora.training.checkpoints import CompletionMark, check_space, find_checkpoint, step_of
from milora.training.progress import ProgressBar
from milora.data.tokens import tokenize_rows
from milora.training.trainer import RecipeTrainer

START = "start.json"


def train(run: RunDirectory) -> None:
    """Train the run's adapter, from its last whole checkpoint if there is one; return at once if it is trained.

    A run that was killed ends with the same adapter as one that was not: seeds are set before the adapter is made,
    and a checkpoint holds the optimiser, the schedule, the data order and the random state. Where a launch has several
    processes, each calls this; all return once the main one has written everything.

    Raises:
        MiloraError: whatever the recipe names does not exist or does not fit, or the launch does not.
    """
    if run.is_trained:
        if is_main_process():
            shutil.rmtree(run.checkpoints, ignore_errors=True)  # of a run that was killed when all was written
        return
    recipe = run.recipe
    is_full, is_adalora = recipe.adapter.method == "full", recipe.adapter.method == "adalora"
    _check_engine(recipe)
    micro_batch = micro_batch_size(recipe)
    prompt, settings = PROMPTS[recipe.data.prompt], recipe.training
    with fail_together():
        check_targets(recipe.model, recipe.adapter)
        rows, held_out = load_training_rows(recipe.data)
        tokenizer = load_tokenizer(recipe.model)
        set_seed(recipe.seed)
        # Full fine-tuning keeps its weights in float32: in bfloat16 most of its small steps would round away.
        model = load_model(recipe.model.model_copy(update={"dtype": "float32"}) if is_full else recipe.model)
    train_set, report = tokenize_rows(rows, prompt, tokenizer, max_length=settings.max_length, loss_on=settings.loss_on)
    held_out_set, _ = tokenize_rows(
        held_out, prompt, tokenizer, max_length=settings.max_length, loss_on=settings.loss_on
    )
    planned = count_steps(recipe, len(train_set))
    if is_adalora and is_main_process():
        # PEFT saves no allocator: a killed run starts over, and ends the same.
        shutil.rmtree(run.checkpoints, ignore_errors=True)
    checkpoint = find_checkpoint(run.checkpoints, planned)
    if checkpoint is None and is_main_process():
        run.write("spectra.json", measure_spectra(model))
    peft_model: PreTrainedModel | PeftModel
    if is_full:
        peft_model, initialization_seconds = model, 0.0
    elif checkpoint is not None and recipe.adapter.has_initial_factors:
        peft_model = load_milora(model, checkpoint, base=recipe.adapter.base, is_trainable=True)
    else:
        started = time.perf_counter()
        course = Course(planned, train_set, DataCollatorForSeq2Seq(tokenizer), micro_batch)
        peft_model, initialization = add_adapter(
            model, recipe.adapter, recipe.seed, jobs=torch.get_num_threads(), course=course
        )
        initialization_seconds = time.perf_counter() - started
        if initialization is not None:
            run.write("initialization.json", asdict(initialization))
    if checkpoint is None:
        run.write(START, {"initialization_seconds": initialization_seconds})

    with fail_together():
        check_space(run.path, peft_model)
    parameters = _count(peft_model)
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run.path / "tensorboard")  # transformers' one way to say where
    trainer = RecipeTrainer(
        model=peft_model,
        args=make_arguments(run, resumed=checkpoint is not None, evaluated=bool(held_out)),
        train_dataset=train_set,
        eval_dataset=held_out_set if held_out else None,
        processing_class=tokenizer,
        callbacks=[ProgressBar(), CompletionMark(), *([RankAllocation()] if is_adalora else [])],
        loraplus_ratio=recipe.adapter.loraplus_ratio if recipe.adapter.method == "loraplus" else None,
    )
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    started = time.perf_counter()
    with keep_initial_factors():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds = time.perf_counter() - started
    held_out_loss = trainer.evaluate()["eval_loss"] if held_out else None
    state = trainer.gather_state()
    trainer.close()
    if is_main_process():
        change = _save(run, peft_model, state, tokenizer)
        resumed_at = step_of(checkpoint) if checkpoint else 0
        steps, history = trainer.state.global_step, trainer.state.log_history
        run.write(
            run.training.name,
            {
                "seconds": seconds,  # since it was resumed
                "resumed_at": resumed_at,
                "steps": steps,
                "seconds_per_step": seconds / (steps - resumed_at),
                "tokens_per_step": trainer.state.num_input_tokens_seen / steps,
                "initialization_seconds": run.read(START)["initialization_seconds"],
                "processes": count_processes(),
                "engine": name_engine(),
                "peak_memory": _peak_memory(),
                "weight_change": change,
                "kept_step": trainer.state.best_global_step or steps,
                "data": asdict(report),
                "parameters": {**parameters, "stored": _count_stored(run.trained)},
                "held_out_loss": [_first(history, "eval_loss"), held_out_loss] if held_out else None,
                "losses": [{"step": entry["step"], "loss": entry["loss"]} for entry in history if "loss" in entry],
            },
        )
        shutil.rmtree(run.checkpoints, ignore_errors=True)
    wait_for_all()


def _check_engine(recipe: Recipe) -> None:
    engine = name_engine()
    if engine == "fsdp1":
        raise MiloraError("FSDP's first version is not supported", "set fsdp_version: 2, as `milora engine fsdp2` does")
    if engine == "ddp":
        return
    if recipe.adapter.method == "adalora":
        raise MiloraError(
            f"AdaLoRA reads whole gradients, which {engine} shares out among the processes",
            "launch it with ddp, or on one process",
        )
    if recipe.model.quantization:
        raise MiloraError(
            f"model.quantization={recipe.model.quantization}: quantised weights are not shared out by {engine}",
            "launch it with ddp, or on one process",
        )


def _save(
    run: RunDirectory, model: PreTrainedModel | PeftModel, state: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase
) -> float:
    """Write the adapter, or a fully tuned model in the dtype in which its base is loaded; return ‖ΔW‖."""
    section, adapter = run.recipe.model, run.recipe.adapter
    if isinstance(model, PeftModel):
        model.save_pretrained(str(run.adapter), state_dict=state)
        is_whole = name_engine() in ("ddp", "zero1", "zero2")
        return measure_change(model if is_whole else attach_adapter(load_model(section), run.adapter, adapter.base))
    tuned = load_model(section.model_copy(update={"dtype": "float32"}))
    tuned.load_state_dict(state)
    change = measure_full_change(tuned, load_model(section))
    tuned.to(getattr(torch, section.dtype)).save_pretrained(str(run.model))
    tokenizer.save_pretrained(str(run.model))
    return change


def _first(history: list[dict[str, Any]], key: str) -> float:
    value: float = next(entry[key] for entry in history if key in entry)
    return value


def _count(model: PreTrainedModel | PeftModel) -> dict[str, int]:
    return {"trainable": model.num_parameters(only_trainable=True), "total": model.num_parameters()}


def _count_stored(folder: Path) -> int:
    """Numbers in what was saved, initial factors and all."""
    stored = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            stored += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return stored


def _peak_memory() -> int:
    """Bytes of this process: allocated on the GPU, or all of them where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
