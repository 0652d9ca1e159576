"""The first steps of a recipe's training, timed in a folder that is deleted afterwards."""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from milora.run.recipe import Recipe
from milora.run.records import Start
from milora.training.arguments import count_steps
from milora.training.checkpoints import StopAtSignal
from milora.training.prepare import locate, prepare, prepare_inputs
from milora.training.speed import peak_memory
from milora.training.train import make_trainer

STEPS = 3  # the first is not timed: memory is allocated in it


@dataclass(frozen=True, slots=True)
class Probe:
    """What the first steps took, and what the whole training will at that pace; bytes and seconds."""

    peak_memory: int
    tokens_per_second: float
    initialization_seconds: float
    seconds: float


class _Clock(TrainerCallback):
    """When the training began, and after each step how many tokens it had seen; stops it after `STEPS`."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.steps: list[tuple[float, float]] = []

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not self.steps:
            self.before = time.perf_counter() - self.began

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.steps.append((time.perf_counter(), float(state.num_input_tokens_seen)))
        control.should_training_stop = len(self.steps) == STEPS


def probe(recipe: Recipe) -> Probe:
    """Train the recipe's first steps, as training would."""
    with tempfile.TemporaryDirectory() as folder:
        training = recipe.training.model_copy(update={"report_to": "none", "save_steps": 10**9, "keep": "last"})
        own = recipe.model_copy(update={"training": training.model_copy(update={"early_stopping_patience": None})})
        run = locate(own, Path(folder))
        prepared = prepare(run, prepare_inputs(own))
        trainer, clock = make_trainer(run, prepared, StopAtSignal()), _Clock()
        trainer.add_callback(clock)
        trainer.train()
        trainer.close()
        initialization = run.read(Start).initialization_seconds
    report, steps = prepared.rows.report, count_steps(recipe, len(prepared.rows.train))
    (first, seen_first), (last, seen_last) = clock.steps[0], clock.steps[-1]
    if len(clock.steps) == 1:
        first, seen_first = clock.began + clock.before, 0.0
    pace = (seen_last - seen_first) / (last - first)
    tokens = steps * recipe.training.batch_size * report.tokens / len(prepared.rows.train)
    looks = 2 + (steps // recipe.training.save_steps if recipe.training.keep == "best" else 0)
    return Probe(peak_memory(), pace, initialization, tokens / pace + looks * clock.before)
