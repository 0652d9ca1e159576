"""What training leaves behind: the trained weights, and the record of how they came about."""

import math
import shutil
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from milora.method.analysis.change import measure_change, measure_full_change
from milora.models.base import attach_adapter, load_model
from milora.models.vision import copy_processor, takes_pictures
from milora.run.directory import RunDirectory, step_of
from milora.run.launch import count_processes, name_launcher
from milora.run.records import ParameterCounts, Start, StepLoss, TrainingRecord
from milora.training.checkpoints import writing
from milora.training.prepare import Preparation, Trained
from milora.training.speed import peak_memory
from milora.training.trainer import RecipeTrainer


def record_training(
    run: RunDirectory,
    prepared: Preparation,
    trainer: RecipeTrainer,
    state: dict[str, Tensor],
    seconds: float,
    held_out_loss: float | None,
) -> None:
    """Save the trained weights `state`, then the record, which says that training is complete.

    `seconds` is the time since the start or resume, `held_out_loss` the one at the end.
    """
    with writing(run.trained):
        change = _save(run, prepared.model, state, prepared.tokenizer)
    resumed_at = step_of(prepared.checkpoint) if prepared.checkpoint else 0
    steps, history = trainer.state.global_step, trainer.state.log_history
    kept_step = trainer.state.best_global_step or steps
    first = next((entry["eval_loss"] for entry in history if "eval_loss" in entry), None)
    record = TrainingRecord(
        seconds=seconds,
        resumed_at=resumed_at,
        steps=steps,
        seconds_per_step=seconds / (steps - resumed_at),
        tokens_per_step=trainer.state.num_input_tokens_seen / steps,
        initialization_seconds=run.read(Start).initialization_seconds,
        processes=count_processes(),
        launcher=name_launcher(),
        peak_memory=peak_memory(),
        weight_change=change,
        kept_step=kept_step,
        template=prepared.rows.template,
        layout=prepared.layout,
        data=prepared.rows.report,
        parameters=ParameterCounts(prepared.trainable, prepared.total, _count_stored(run.trained)),
        held_out_loss=None if first is None or held_out_loss is None else (first, held_out_loss),
        losses=[
            StepLoss(int(entry["step"]), entry["loss"], entry["learning_rate"]) for entry in history if "loss" in entry
        ],
        tokens_per_second=trainer.speed.tokens_per_second,
        mfu=trainer.speed.mfu,
        held_out=_list_held_out(history, kept_step),
    )
    run.write(record)
    shutil.rmtree(run.checkpoints, ignore_errors=True)


def _list_held_out(history: list[dict[str, float]], kept_step: int) -> list[StepLoss]:
    """The losses on held-out rows; the last one was measured after training, with the weights that were kept."""
    measured = [(int(entry["step"]), entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    found = dict([*measured[:-1], *((kept_step, loss) for _, loss in measured[-1:])])
    return [StepLoss(step, loss) for step, loss in sorted(found.items())]


def _save(run: RunDirectory, model: Trained, state: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase) -> float:
    """Write the adapter, or a fully tuned model in the dtype in which its base is loaded; return ‖ΔW‖."""
    section, adapter = run.recipe.model, run.recipe.adapter
    if isinstance(model, PeftModel):
        model.save_pretrained(str(run.adapter), state_dict=state, save_embedding_layers=False)
        is_whole = name_launcher() in ("ddp", "zero1", "zero2")
        return measure_change(model if is_whole else attach_adapter(load_model(section), run.adapter, adapter.form))
    tuned = load_model(section.model_copy(update={"dtype": "float32"}))
    tuned.load_state_dict(state)
    change = measure_full_change(tuned, load_model(section))
    tuned.to(getattr(torch, section.dtype)).save_pretrained(str(run.model))
    tokenizer.save_pretrained(str(run.model))
    if takes_pictures(section):
        copy_processor(section, run.model)
    return change


def _count_stored(folder: Path) -> int:
    """Numbers in what was saved, initial factors included."""
    stored = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            slices = [file.get_slice(name) for name in file.keys()]  # noqa: SIM118  not a mapping
            # The digests of the base's weights are bytes.
            stored += sum(math.prod(part.get_shape()) for part in slices if part.get_dtype() != "U8")
    return stored
