"""The runs that a comparison means, each resolved once, and where they are on disk."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from milora.comparison.plan import Comparison
from milora.evaluation.evaluate import is_scored
from milora.evaluation.target import target_of_run
from milora.method.errors import MiloraError
from milora.method.files import write_text
from milora.run.directory import RunDirectory
from milora.run.recipe import Recipe, read_recipe, resolve_recipe
from milora.run.records import CellRecord
from milora.training.prepare import locate


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of the grid, and where it is, or will be; other comparisons may share it."""

    arm: str
    learning_rate: float
    seed: int
    run: RunDirectory
    scores_base: bool  # the first cell does it for all

    @property
    def is_finished(self) -> bool:
        """Whether everything that the recipe asks for is there."""
        run, section = self.run, self.run.recipe.evaluation
        if not run.has(CellRecord) or not run.is_trained:
            return False
        target = target_of_run(run)
        return is_scored(target, section) and (not self.scores_base or is_scored(target.base, section))


@dataclass(frozen=True, slots=True)
class Grid:
    """A comparison's cells, seeds outermost: a comparison that is stopped early is a whole smaller one."""

    comparison: Comparison
    recipe: Recipe  # before arms, rates and seeds
    cells: list[Cell]
    path: Path  # the results go there, beside the folder of runs

    @property
    def factors(self) -> Path:
        """Where runs of one rank and seed share the factors of their weights, until all are done."""
        return self.path / "factors"

    def write_recipe(self, cell: Cell, number: int) -> Path:
        """Write a cell's recipe for the process that runs it; return the file."""
        folder = self.path / "recipes"
        folder.mkdir(exist_ok=True)
        write_text(folder / f"{number}.yaml", cell.run.recipe.to_yaml())
        return folder / f"{number}.yaml"

    def missing(self) -> list[Cell]:
        return [cell for cell in self.cells if not cell.is_finished]


def plan_grid(comparison: Comparison, runs: Path) -> Grid:
    """Resolve every run of a comparison, in run directories under `runs`.

    Raises:
        MiloraError: an arm that the recipe's schema refuses, or no rows are held out to choose the learning rate on.
    """
    settings = read_recipe(comparison.recipe)
    parent = resolve_recipe(comparison.recipe, settings, comparison.overrides)
    cells: list[Cell] = []
    for seed in comparison.seeds:
        for arm, overrides in comparison.arms.items():
            for rate in comparison.rates(arm):
                own = [f"training.learning_rate={rate!r}", f"seed={seed}"]
                recipe = resolve_recipe(comparison.recipe, settings, [*comparison.overrides, *overrides, *own])
                if not recipe.data.validation_rows:
                    raise MiloraError(
                        f"comparison {comparison.name}: the best learning rate is chosen on held-out rows, and there "
                        "are none",
                        "set data.validation_rows",
                    )
                cells.append(Cell(arm, rate, seed, locate(recipe, runs), scores_base=not cells))
    decides = [
        [cell.arm, cell.run.path.name, cell.run.recipe.evaluation.model_dump(exclude_defaults=True)] for cell in cells
    ]
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:8]
    return Grid(comparison, parent, cells, runs.parent / "comparisons" / f"{comparison.name}-{digest}")


def describe_cells(grid: Grid) -> str:
    """One line for each run: arm, learning rate, seed, and directory."""
    return "\n".join(f"{cell.arm:<16}{cell.learning_rate:<10g}{cell.seed:<4}{cell.run.path}" for cell in grid.cells)


def describe_cost(grid: Grid, jobs: int) -> str:
    """One line: runs, steps, and the time left, once a run has finished."""
    missing = grid.missing()
    training = grid.cells[0].run.recipe.training
    each = f"{training.max_steps} steps" if training.max_steps else f"{training.epochs:g} epochs"
    finished = len(grid.cells) - len(missing)
    line = f"{len(grid.cells)} runs of {each}, {finished} finished, {len(missing)} to do, {jobs} at a time"
    took = [cell.run.read(CellRecord).seconds for cell in grid.cells if cell.run.has(CellRecord)]
    if missing and took:
        return f"{line}: about {_minutes(median(took) * -(-len(missing) // jobs))}"
    return f"{line}; the time is estimated after the first run" if missing else line


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
