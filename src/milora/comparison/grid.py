"""The runs that a comparison means, each resolved once, and where they are on disk."""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

from milora.comparison.plan import Comparison
from milora.evaluation.evaluate import is_scored
from milora.evaluation.target import target_of_run
from milora.method.errors import MiloraError
from milora.method.files import write_text
from milora.run.directory import RunDirectory
from milora.run.recipe import Recipe, read_recipe, resolve_recipe
from milora.run.records import CellRecord, TrainingRecord
from milora.training.prepare import locate


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of the grid, and where it is, or will be; other comparisons may share it."""

    arm: str
    learning_rate: float
    seed: int
    run: RunDirectory
    tunes: bool  # it runs in any case: the best learning rate is chosen on it
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

    @property
    def count(self) -> int:
        """The number of runs, each arm's best learning rate known or not."""
        others = sum(not self.comparison.tunes(seed) for seed in self.comparison.seeds)
        return sum(cell.tunes for cell in self.cells) + others * len(self.comparison.arms)

    def needed(self) -> list[Cell]:
        """Return the cells that run, as far as it is known: those that tune, and the others at the best rate found."""
        best = {arm: self._tuned_rate(arm) for arm in {cell.arm for cell in self.cells if not cell.tunes}}
        return [cell for cell in self.cells if cell.tunes or cell.learning_rate == best[cell.arm]]

    def missing(self) -> list[Cell]:
        return [cell for cell in self.needed() if not cell.is_finished]

    def best_rate(self, arm: str) -> float:
        """Return the learning rate with the lowest held-out loss, averaged over the finished runs that tune.

        Of rates with fewer finished seeds than others, none is chosen.
        """
        losses: dict[float, list[float]] = {}
        for cell in self._tuning(arm):
            if cell.is_finished and (held_out := cell.run.read(TrainingRecord).held_out_loss):
                losses.setdefault(cell.learning_rate, []).append(held_out[1])
        return min(losses, key=lambda rate: (-len(losses[rate]), _finite(fmean(losses[rate]))))

    def _tuned_rate(self, arm: str) -> float | None:
        """The best rate, once no run that tunes is to come: those that diverged would diverge again."""
        tuning = self._tuning(arm)
        is_settled = all(cell.is_finished or cell.run.is_diverged for cell in tuning)
        return self.best_rate(arm) if is_settled and any(cell.is_finished for cell in tuning) else None

    def _tuning(self, arm: str) -> list[Cell]:
        return [cell for cell in self.cells if cell.arm == arm and cell.tunes]


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
                run = locate(recipe, runs)
                cells.append(Cell(arm, rate, seed, run, comparison.tunes(seed), scores_base=not cells))
    decides: list[object] = [
        [cell.arm, cell.run.path.name, cell.run.recipe.evaluation.model_dump(exclude_defaults=True)] for cell in cells
    ]
    decides += [cell.run.path.name for cell in cells if not cell.tunes]
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:8]
    return Grid(comparison, parent, cells, runs.parent / "comparisons" / f"{comparison.name}-{digest}")


def describe_cells(grid: Grid) -> str:
    """One line for each run: arm, learning rate, seed, directory, and whether it runs only at the best rate."""
    return "\n".join(
        f"{cell.arm:<16}{cell.learning_rate:<10g}{cell.seed:<4}{cell.run.path}{'' if cell.tunes else '  if best'}"
        for cell in grid.cells
    )


def describe_cost(grid: Grid, jobs: int) -> str:
    """One line: runs, steps, and the time left, once a run has finished."""
    training = grid.cells[0].run.recipe.training
    each = f"{training.max_steps} steps" if training.max_steps else f"{training.epochs:g} epochs"
    finished = sum(cell.is_finished for cell in grid.needed())
    waiting = grid.count - finished
    line = f"{grid.count} runs of {each}, {finished} finished, {waiting} to do, {jobs} at a time"
    took = [cell.run.read(CellRecord).seconds for cell in grid.cells if cell.run.has(CellRecord)]
    if waiting and took:
        return f"{line}: about {_minutes(median(took) * -(-waiting // jobs))}"
    return f"{line}; the time is estimated after the first run" if waiting else line


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _finite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf
