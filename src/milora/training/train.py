"""A recipe → a trained adapter in its run directory."""

import os
import shutil
import sys
import time
from pathlib import Path
from signal import SIGINT, SIGTERM

from peft.helpers import disable_input_dtype_casting
from transformers import EarlyStoppingCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from milora.models.methods import RankAllocation
from milora.run.directory import ALIGNMENT, RunDirectory, create_run, locate_run
from milora.run.interruption import Interrupted, on_signal
from milora.run.launch import fail_together, is_main_process, wait_for_all
from milora.run.lock import locked
from milora.training.announcement import announce
from milora.training.arguments import make_arguments, micro_batch_size
from milora.training.checkpoints import CompletionMark, StopAtSignal, can_resume
from milora.training.divergence import DivergedError, DivergenceGuard, check_trained
from milora.training.prepare import Preparation, identify_stages, prepare, prepare_inputs
from milora.training.progress import ProgressBar
from milora.training.record import record_training
from milora.training.speed import Speed
from milora.training.trainer import RecipeTrainer


def train(run: RunDirectory, cache: Path | None = None) -> None:
    """Train the run's adapter, from its last whole checkpoint if there is one; return at once if it is trained.

    A run that was killed ends with the same adapter as one that was not: a checkpoint contains the optimizer, the
    schedule, the data order and the random state. If a launch has several processes, each calls this; all return once
    the main one has written everything. `cache` is a folder of factors and of prepared rows.

    At a Ctrl-C or SIGTERM, training finishes its step and saves a checkpoint before it stops.

    Raises:
        MiloraError: something that the recipe names does not exist, the recipe or the launch does not fit, or
            training diverged.
        Interrupted: a signal came.
    """
    if run.is_trained:
        if is_main_process():
            shutil.rmtree(run.checkpoints, ignore_errors=True)  # of a run that was killed when all was written
        return
    try:
        _train(run, cache)
    except DivergedError as error:
        run.write(error.found)
        raise


def _train(run: RunDirectory, cache: Path | None) -> None:
    inputs = prepare_inputs(run.recipe, cache)  # before a first stage is paid for
    prepared = prepare(run, inputs, cache, _align(run, cache))
    if is_main_process():
        print(announce(run.recipe, prepared), file=sys.stderr)
    stop = StopAtSignal()
    trainer = make_trainer(run, prepared, stop)
    started = time.perf_counter()
    # Autocast rounds the factors when they are used; PEFT would first widen what they are multiplied with.
    with disable_input_dtype_casting(prepared.model, active=trainer.args.bf16 or trainer.args.fp16):
        with on_signal(stop.note, (SIGINT, SIGTERM), " after this step"):
            trainer.train(resume_from_checkpoint=str(prepared.checkpoint) if prepared.checkpoint else None)
        seconds = time.perf_counter() - started
        if stop.stopped:
            trainer.close()
            raise Interrupted(stop.signal or SIGTERM, _say_kept(run))
        held_out_loss = trainer.evaluate()["eval_loss"] if prepared.rows.held_out else None
    state = trainer.gather_state()
    trainer.close()
    with fail_together():
        if is_main_process():
            check_trained(state, held_out_loss, trainer.state.global_step, run.recipe.training.learning_rate)
    if is_main_process():
        record_training(run, prepared, trainer, state, seconds, held_out_loss)
    wait_for_all()
    if stop.signal is not None:  # in the last step
        raise Interrupted(stop.signal, f"{run.path} is trained")


def _align(run: RunDirectory, cache: Path | None) -> Path | None:
    """Train the first stage of a run, if it has one, or continue it; return its adapter, which has the projector.

    It is a run of its own in the run's directory, and in a comparison in the `cache`: its runs share it.
    """
    recipe = run.recipe.first_stage
    if recipe is None:
        return None
    first = locate_run(recipe, identify_stages(recipe), (cache / ALIGNMENT) if cache else run.alignment)
    with locked(first.path, wait=True):
        if is_main_process():
            print("first stage: the projector alone", file=sys.stderr)
        train(create_run(first), cache)
    return first.adapter


def _say_kept(run: RunDirectory) -> str:
    if not can_resume(run.recipe):
        return "AdaLoRA's state cannot be saved: the run will start over"
    return f"{run.last_checkpoint()} is saved"


def make_trainer(run: RunDirectory, prepared: Preparation, stop: StopAtSignal) -> RecipeTrainer:
    """Return the trainer of a run, with everything that watches its steps."""
    adapter, rows, patience = run.recipe.adapter, prepared.rows, run.recipe.training.early_stopping_patience
    pictures = {} if prepared.collator is None else {"data_collator": prepared.collator}
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run.tensorboard)  # transformers' one way to say where
    trainer = RecipeTrainer(
        model=prepared.model,
        args=make_arguments(run, resumed=prepared.checkpoint is not None, evaluated=rows.held_out is not None),
        train_dataset=rows.train,
        eval_dataset=rows.held_out,
        processing_class=prepared.tokenizer,
        callbacks=[
            ProgressBar(),
            DivergenceGuard(),
            stop,
            CompletionMark(),
            *([RankAllocation()] if adapter.method == "adalora" else []),
            *([EarlyStoppingCallback(patience)] if patience else []),
        ],
        layout=prepared.layout,
        micro_batch_size=micro_batch_size(run.recipe),
        loraplus_ratio=adapter.loraplus_ratio if adapter.method == "loraplus" else None,
        speed=Speed(prepared, run.recipe.model.dtype),
        projector=prepared.projector,
        **pictures,
    )
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    return trainer
