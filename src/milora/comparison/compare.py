"""A comparison → its runs, and what they show."""

import sys
from typing import Literal

from milora.comparison.grid import Grid, describe_cost
from milora.comparison.plan import Cell
from milora.comparison.schedule import Task, run_here, run_on_ray
from milora.evaluation.evaluate import check_evaluation
from milora.evaluation.forgetting import check_text
from milora.run.directory import create_run

Engine = Literal["local", "ray"]


def run_missing(grid: Grid, *, jobs: int, engine: Engine, gpus: float) -> list[str]:
    """Run what is not finished, and return what failed and why; a failed run stops no other.

    Raises:
        MiloraError: before anything runs, if a benchmark or a text is not there.
    """
    missing = grid.missing()
    for cell, _ in missing:
        check_evaluation(cell.recipe)
        check_text(cell.recipe.evaluation.forgetting)
    tasks: list[Task] = [(create_run(cell.recipe, grid.runs.resolve()).path, baseline) for cell, baseline in missing]
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
