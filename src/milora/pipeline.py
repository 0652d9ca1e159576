"""The main job: check → train → evaluate → export → report; for one run, and for every run of a comparison."""

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from milora.comparison.grid import Cell, Grid, describe_cost
from milora.comparison.results import Results, collect_results
from milora.comparison.schedule import Job, run_here, run_on_ray
from milora.evaluation.check import check_evaluation, expand
from milora.evaluation.evaluate import evaluate
from milora.evaluation.held_out import answer_held_out
from milora.evaluation.scores import Scores
from milora.evaluation.target import target_of_run
from milora.method.analysis.spectrum import measure_spectra
from milora.method.errors import MiloraError
from milora.method.options import Export, Scheduler
from milora.models.base import load_model
from milora.models.card import say_how_to_load
from milora.models.export import export_run
from milora.models.vision import takes_pictures
from milora.report.comparison_page import write_results
from milora.report.outcome import format_outcome
from milora.report.run_page import write_report
from milora.run.directory import RunDirectory, create_run
from milora.run.identity import Identity
from milora.run.launch import fail_together, is_main_process
from milora.run.lock import locked
from milora.run.recipe import Recipe, load_recipe
from milora.run.records import CellRecord, Spectra, TrainingRecord
from milora.training.diagnosis import Diagnosis, diagnose_training
from milora.training.prepare import identify_stages, locate
from milora.training.train import train


@dataclass(frozen=True, slots=True)
class Finished:
    """What the main job leaves: its outcome in words, the exported adapter or model, how to load it, the report."""

    outcome: str
    exported: Path
    how_to_load: str
    report: Path


@dataclass(frozen=True, slots=True)
class Compared:
    """What a comparison leaves: its results, its page if a run is finished, and the runs that failed, with why."""

    results: Results
    page: Path | None
    failures: list[str]


def locate_job(job: Recipe | RunDirectory, runs: Path) -> RunDirectory:
    """Return the run directory of a recipe, or the run directory that is given.

    Raises:
        MiloraError: data or model files have changed since the run started.
    """
    with fail_together():
        if isinstance(job, Recipe):
            return locate(job, runs)
        if identify_stages(job.recipe) != job.read(Identity):
            raise MiloraError(
                f"{job.path} was started with other data or model files than those that its recipe names now",
                "restore the files, or run the recipe again, in a new run directory",
            )
        return job


def diagnose(recipe: Recipe, runs: Path) -> Diagnosis:
    """Look at everything that the main job needs, and at what it costs, without starting it."""
    found = diagnose_training(recipe, runs)
    with found.looking():
        check_evaluation(recipe, yes=True)
        found.found.append(("tasks", ", ".join(expand(recipe.evaluation)) or "none"))
    return found


def train_only(run: RunDirectory) -> None:
    """Train a run, or continue it."""
    with _working_on(run):
        train(run)


@contextmanager
def _working_on(run: RunDirectory) -> Iterator[None]:
    """Hold the run's directory, and remove it again if the run is refused before its first step."""
    absent = [path for path in (run.path, *run.path.parents) if not path.exists()]
    with locked(run.path):
        try:
            create_run(run)
            yield
        finally:
            if absent and is_main_process() and not run.has_started:
                shutil.rmtree(run.path)
                with suppress(OSError):  # another process may have made a run beside it
                    for path in absent[1:]:
                        path.rmdir()


def run_all(run: RunDirectory, *, yes: bool = False) -> Finished | None:
    """Do the main job for one run; what is done already is read. Only the main process of a launch returns something.

    `yes` agrees beforehand to what a judge costs.

    Raises:
        MiloraError: something that the recipe names does not exist, or does not fit; before training where that can
            be known.
    """
    check_evaluation(run.recipe, yes=yes)
    with _working_on(run):
        scores = _train_and_score(run, baseline=True, yes=yes)
        if not run.recipe.evaluation.tasks:  # of which there are answers to read
            answer_held_out(run)
        if not is_main_process():
            return None
        if not run.has(Spectra):
            run.write(Spectra(measure_spectra(load_model(run.recipe.model))))
        form: Export = "merged" if run.recipe.adapter.method == "full" else "lora"
        exported = export_run(run, run.trained, form)
        load = say_how_to_load(run.recipe.model, form, str(exported), pictures=takes_pictures(run.recipe.model))
        outcome = format_outcome(run.read(TrainingRecord), scores)
        return Finished(outcome, exported, load, write_report(run))


def compare(grid: Grid, *, jobs: int, scheduler: Scheduler, gpus: float, yes: bool = False) -> Compared:
    """Run what is missing of a comparison, and write what it shows; a failed run does not stop the others.

    `yes` agrees to what a judge costs: the runs are processes without a terminal to ask in.

    Raises:
        MiloraError: before anything runs, if a benchmark or a text does not exist.
    """
    with locked(grid.path):
        failures: list[str] = []
        for tunes in (True, False):  # the first runs show at which learning rate the others run
            if missing := [cell for cell in grid.missing() if cell.tunes is tunes]:
                failures += _run(missing, grid, jobs, scheduler, gpus, yes)
        if not grid.missing():
            shutil.rmtree(grid.factors, ignore_errors=True)
        results = collect_results(grid)
        return Compared(results, write_results(grid, results) if results.arms else None, failures)


def run_cell(path: Path, recipe: Path, *, baseline: bool, factors: Path, yes: bool = False) -> None:
    """Do one run of a comparison, in a process of its own; its record, written last, says that all is done.

    Waits for a process that works on the same run: two comparisons may share one.
    """
    with locked(path, wait=True):
        run = create_run(RunDirectory(path, load_recipe(str(recipe))))
        started = time.perf_counter()
        _train_and_score(run, baseline=baseline, yes=yes, cache=factors)
        seconds = time.perf_counter() - started
        if run.has(CellRecord):  # another comparison trained it, too
            seconds = max(seconds, run.read(CellRecord).seconds)
        run.write(CellRecord(seconds))


def _train_and_score(run: RunDirectory, *, baseline: bool, yes: bool, cache: Path | None = None) -> list[Scores]:
    train(run, cache)
    return evaluate(target_of_run(run), run.recipe.evaluation, baseline=baseline, yes=yes)


def _run(missing: list[Cell], grid: Grid, jobs: int, scheduler: Scheduler, gpus: float, yes: bool) -> list[str]:
    """Run cells, some at a time; return why those that failed did."""
    for recipe in {_what_is_scored(cell): cell.run.recipe for cell in missing}.values():
        check_evaluation(recipe, yes=yes, asks=False)
    waiting, labels = [], {}
    for number, cell in enumerate(missing):
        file = grid.write_recipe(cell, number)
        waiting.append(Job(cell.run, file, cell.scores_base, grid.factors, yes))
        labels[file] = _label(cell)
    failures = []
    for job, failure in run_on_ray(waiting, gpus) if scheduler == "ray" else run_here(waiting, jobs):
        label = labels[job.recipe]
        print(f"{'failed' if failure else 'finished'}  {label}  {job.run.path}", file=sys.stderr)
        if failure:
            failures.append(f"{label}: {failure} (see {job.run.log})")
        print(describe_cost(grid, jobs), file=sys.stderr)
    return failures


def _what_is_scored(cell: Cell) -> str:
    recipe = cell.run.recipe
    return f"{recipe.evaluation.model_dump_json()} {recipe.data.data_dir}"


def _label(cell: Cell) -> str:
    return f"{cell.arm}, learning rate {cell.learning_rate:g}, seed {cell.seed}"
