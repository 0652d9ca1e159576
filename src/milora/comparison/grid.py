"""The cells of a comparison and where each stands on disk."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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
