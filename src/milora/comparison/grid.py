"""The cells of a comparison and where each stands on disk."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from milora.comparison.plan import Cell, Comparison, plan_runs
from milora.run.directory import FINISHED, RunDirectory, locate_run


@dataclass(frozen=True, slots=True)
class Grid:
    """The cells of a comparison with their run directories, which other comparisons may share."""

    comparison: Comparison
    runs: Path

    def __iter__(self) -> Iterator[tuple[Cell, RunDirectory]]:
        for cell in plan_runs(self.comparison):
            yield cell, locate_run(cell.recipe, self.runs)

    @property
    def path(self) -> Path:
        """Where the comparison's results go, beside the folder of runs."""
        return self.runs.parent / "comparisons" / f"{self.comparison.name}-{self.comparison.digest}"

    def missing(self) -> list[tuple[Cell, bool]]:
        """Return the cells that are not finished, each with whether it scores the base: the first does."""
        return [
            (cell, index == 0)
            for index, (cell, run) in enumerate(self)
            if not (run.is_finished and (index > 0 or run.read(FINISHED)["baseline"]))
        ]


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


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
