"""A comparison → its runs, and what they show."""

import sys
from statistics import median
from typing import Literal

from milora.comparison.grid import Grid
from milora.comparison.plan import Cell
from milora.comparison.schedule import Task, run_here, run_on_ray
from milora.evaluation.evaluate import check_evaluation
from milora.evaluation.forgetting import check_text
from milora.run.directory import FINISHED, create_run

Engine = Literal["local", "ray"]


def describe_cost(grid: Grid, jobs: int) -> str:
    """One line: runs, steps, and the time, once a run has told how long one takes."""
    cells, missing = list(grid), grid.missing()
    steps = cells[0][0].recipe.training.max_steps
    each = f"{steps} steps" if steps else f"{cells[0][0].recipe.training.epochs:g} epochs"
    line = f"{len(cells)} runs of {each}, {len(cells) - len(missing)} finished, {len(missing)} to do, {jobs} at a time"
    took = [run.read(FINISHED)["seconds"] for _, run in cells if run.is_finished]
    if missing and took:
        return f"{line}: about {_minutes(median(took) * -(-len(missing) // jobs))}"
    return f"{line}; how long it takes is known after the first" if missing else line


def run_missing(grid: Grid, *, jobs: int, engine: Engine, gpus: float) -> list[str]:
    """Run what is not finished, and return what failed and why; a failed run stops no other.

    Raises:
        MiloraError: before anything runs, if a benchmark or a text is not there.
    """
    missing = grid.missing()
    for cell, _ in missing:
        check_evaluation(cell.recipe)
        check_text(cell.recipe.evaluation.forgetting)
    tasks: list[Task] = [(create_run(cell.recipe, grid.runs).path, baseline) for cell, baseline in missing]
    labels = {path: _label(cell) for (cell, _), (path, _) in zip(missing, tasks, strict=True)}
    ended = run_on_ray(tasks, gpus) if engine == "ray" else run_here(tasks, jobs)
    failures = []
    for path, failure in ended:
        print(f"{'failed' if failure else 'finished'}  {labels[path]}  {path}", file=sys.stderr)
        if failure:
            failures.append(f"{labels[path]}: {failure} (see {path}/worker.log)")
        print(describe_cost(grid, jobs), file=sys.stderr)
    return failures


def _label(cell: Cell) -> str:
    return f"{cell.arm}, learning rate {cell.learning_rate:g}, seed {cell.seed}"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
