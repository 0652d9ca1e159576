"""A recipe → a trained adapter in its run directory."""

import os
import shutil
import sys
import time
from pathlib import Path

from transformers.trainer_callback import PrinterCallback, ProgressCallback

from milora.method.variant import keep_initial_factors
from milora.models.methods import RankAllocation
from milora.run.directory import RunDirectory
from milora.run.launch import fail_together, is_main_process, wait_for_all
from milora.training.announcement import announce
from milora.training.arguments import make_arguments
from milora.training.checkpoints import CompletionMark
from milora.training.divergence import DivergedError, DivergenceGuard, check_trained
from milora.training.prepare import Preparation, prepare
from milora.training.progress import ProgressBar
from milora.training.record import record_training
from milora.training.trainer import RecipeTrainer


def train(run: RunDirectory, cache: Path | None = None) -> None:
    """Train the run's adapter, from its last whole checkpoint if there is one; return at once if it is trained.

    A run that was killed ends with the same adapter as one that was not: a checkpoint contains the optimizer, the
    schedule, the data order and the random state. If a launch has several processes, each calls this; all return once
    the main one has written everything. `cache` is a folder of factors; see `decompose_layers`.

    Raises:
        MiloraError: something that the recipe names does not exist, the recipe or the launch does not fit, or
            training diverged.
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
    prepared = prepare(run, cache)
    if is_main_process():
        print(announce(run.recipe, prepared), file=sys.stderr)
    trainer = _make_trainer(run, prepared)
    started = time.perf_counter()
    with keep_initial_factors():
        trainer.train(resume_from_checkpoint=str(prepared.checkpoint) if prepared.checkpoint else None)
    seconds = time.perf_counter() - started
    held_out_loss = trainer.evaluate()["eval_loss"] if prepared.rows.held_out else None
    state = trainer.gather_state()
    trainer.close()
    with fail_together():
        if is_main_process():
            check_trained(state, held_out_loss, trainer.state.global_step, run.recipe.training.learning_rate)
    if is_main_process():
        record_training(run, prepared, trainer, state, seconds, held_out_loss)
    wait_for_all()


def _make_trainer(run: RunDirectory, prepared: Preparation) -> RecipeTrainer:
    adapter, rows = run.recipe.adapter, prepared.rows
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
            CompletionMark(),
            *([RankAllocation()] if adapter.method == "adalora" else []),
        ],
        loraplus_ratio=adapter.loraplus_ratio if adapter.method == "loraplus" else None,
    )
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    return trainer
