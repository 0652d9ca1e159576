"""What is known of a training before it starts: its model, its rows, its cost, and what is probably not meant."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from milora.data.training_rows import load_training_rows
from milora.method.errors import MiloraError
from milora.models.base import load_tokenizer
from milora.models.targets import check_targets
from milora.run.recipe import Recipe
from milora.training.advice import advise_on_rows, advise_on_size
from milora.training.announcement import describe_rows, render_row
from milora.training.arguments import check_optimizer, check_reporting, count_steps, micro_batch_size
from milora.training.estimate import Size, check_space, estimate_memory, measure_size, needed_space
from milora.training.prepare import check_launch, check_pictures_of
from milora.training.probe import STEPS, probe
from milora.training.rows import Rows, check_embedded, find_pictures, prepare_rows

PROBED = 3e12  # operations of a step: seconds on the cores of a CPU
DEVICES = {"one H100": 989e12, "one A100": 312e12}  # dense bf16 operations per second, NVIDIA's data sheets
SHARE = 0.4  # of them that training reaches: an assumption


@dataclass(slots=True)
class Diagnosis:
    """What was found, a title and a text each; what is probably not meant; and what keeps the recipe from running."""

    found: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[MiloraError] = field(default_factory=list)

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Note the error that is raised inside, once."""
        try:
            yield
        except MiloraError as error:
            if str(error) not in map(str, self.problems):
                self.problems.append(error)

    def __str__(self) -> str:
        lines = [f"{title:<9} {text}" for title, text in self.found]
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])


def diagnose_training(recipe: Recipe, runs: Path) -> Diagnosis:
    """Look at everything that a training under `runs` needs; where one thing is missing, the others are still told."""
    diagnosis, tokenizer, rows, size = Diagnosis(), None, None, None
    with diagnosis.looking():
        check_launch(recipe)
        check_reporting(recipe.training.report_to)
        check_optimizer(recipe.training.optimizer)
        micro_batch_size(recipe)
    with diagnosis.looking():
        size = _look_at_model(diagnosis, recipe)
    with diagnosis.looking():
        tokenizer = load_tokenizer(recipe.model)
    with diagnosis.looking():
        if tokenizer is not None:
            rows = _look_at_rows(diagnosis, recipe, tokenizer)
        else:
            found = load_training_rows(recipe.data)
            text = f"{len(found.train):,} rows, {len(found.held_out):,} held out; their tokens are not known"
            diagnosis.found.append(("rows", text))
    if size is not None:
        with diagnosis.looking():
            free = check_space(_first_existing(runs), size.trainable)
            diagnosis.found.append(
                ("disk", f"{needed_space(size.trainable) / 1e9:.2f} GB at most, {free / 1e9:.1f} GB are free")
            )
        if rows is not None:
            with diagnosis.looking():
                _look_at_cost(diagnosis, recipe, size, rows)
    return diagnosis


def _look_at_model(diagnosis: Diagnosis, recipe: Recipe) -> Size:
    check_targets(recipe.model, recipe.adapter)
    size, adapter = measure_size(recipe), recipe.adapter
    form = recipe.model.quantization or recipe.model.dtype
    diagnosis.found.append(("model", f"{recipe.model.name}: {size.total:,} parameters, {form}"))
    text = f"{adapter.method}: {size.trainable:,} trainable parameters"
    if size.layers:
        text += (
            f", rank {adapter.rank}, on {len(size.layers)} layers with {size.covered / size.total:.0%} of the model's"
        )
    diagnosis.found.append(("adapter", text))
    diagnosis.warnings += advise_on_size(recipe, size)
    return size


def _look_at_rows(diagnosis: Diagnosis, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Rows:
    rows = prepare_rows(recipe, tokenizer, pictures=find_pictures(recipe.model))
    check_embedded(rows.train, recipe, tokenizer)
    check_pictures_of(recipe, rows)
    diagnosis.found += [("rows", describe_rows(recipe, rows)), ("sample", render_row(rows, tokenizer))]
    diagnosis.warnings += advise_on_rows(recipe, rows, tokenizer)
    return rows


def _look_at_cost(diagnosis: Diagnosis, recipe: Recipe, size: Size, rows: Rows) -> None:
    steps, batch = count_steps(recipe, len(rows.train)), recipe.training.batch_size
    mean = rows.report.tokens / len(rows.train)
    memory = estimate_memory(recipe, size, micro_batch_size(recipe) * rows.report.longest)
    if _has_accelerator() or (size.operations * mean * batch <= PROBED and memory < _memory_of_machine()):
        found = probe(recipe)
        how = f"measured: {STEPS} steps on {_device()}"
        diagnosis.found += [
            ("memory", f"{found.peak_memory / 1e9:.2f} GB at its peak ({how})"),
            (
                "time",
                f"{_say(found.initialization_seconds + found.seconds)}: {_say(found.initialization_seconds)} to start, "
                f"{found.tokens_per_second:,.0f} tokens/s ({how})",
            ),
        ]
        return
    operations = size.operations * mean * batch * steps
    times = ", ".join(f"{_say(operations / peak / SHARE)} on {device}" for device, peak in DEVICES.items())
    diagnosis.found += [
        ("memory", f"{memory / 1e9:.1f} GB at its peak (arithmetic, for the longest rows; nothing was measured)"),
        ("time", f"{times} (arithmetic, {operations:.2g} operations at {SHARE:.0%} of the peak; nothing was measured)"),
    ]


def _first_existing(folder: Path) -> Path:
    return next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())


def _has_accelerator() -> bool:
    return torch.accelerator.is_available()


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"


def _memory_of_machine() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _say(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
