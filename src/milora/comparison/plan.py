"""A comparison: one recipe × arms × learning rates × seeds, and the runs that it means."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Annotated, Any, Self

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, ValidationError, model_validator
from yaml import YAMLError

from milora.method.errors import MiloraError
from milora.run.recipe import Recipe, Section, explain, load_recipe, read_settings

Rate = Annotated[float, Field(gt=0)]
ITS_OWN = ("training.learning_rate", "seed")


class Comparison(Section):
    """What is compared. An arm is a list of overrides of the recipe; nothing is copied.

    `arm_learning_rates` replaces the grid of the arms that it names. `paper` holds the paper's figures, in percent,
    {arm: {task: figure}}, and `differs` says in what this comparison is not the paper's.
    """

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    description: str = ""
    recipe: str
    overrides: list[str] = []
    arms: Annotated[dict[str, list[str]], Field(min_length=1)]
    learning_rates: Annotated[list[Rate], Field(min_length=1)]
    arm_learning_rates: dict[str, Annotated[list[Rate], Field(min_length=1)]] = {}
    seeds: Annotated[list[int], Field(min_length=1)] = [0]
    paper: dict[str, dict[str, float]] = {}
    differs: str = ""

    def rates(self, arm: str) -> list[float]:
        return sorted(self.arm_learning_rates.get(arm, self.learning_rates))

    @property
    def digest(self) -> str:
        """Eight hex digits of everything that decides the result, the recipe's own contents too."""
        plan = [(cell.arm, cell.recipe.digest) for cell in plan_runs(self)]
        return hashlib.sha256(json.dumps(plan).encode()).hexdigest()[:8]

    @model_validator(mode="after")
    def _one_place_for_each_thing(self) -> Self:
        overrides = [override for arm in (self.overrides, *self.arms.values()) for override in arm]
        for override in overrides:
            if override.partition("=")[0] in ITS_OWN:
                raise ValueError(f"{override}: rates and seeds stand in learning_rates and seeds")
        for arm in {*self.arm_learning_rates, *self.paper} - self.arms.keys():
            raise ValueError(f"{arm} is no arm: there are {', '.join(self.arms)}")
        for values in (self.learning_rates, list(map(float, self.seeds)), *self.arm_learning_rates.values()):
            if len(set(values)) < len(values):
                raise ValueError(f"{values} names something twice")
        return self


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of the grid."""

    arm: str
    learning_rate: float
    seed: int
    recipe: Recipe


def list_comparisons() -> list[str]:
    """Return the names of the shipped comparisons."""
    return sorted(path.name.removesuffix(".yaml") for path in files("milora.comparison").joinpath("comparisons").iterdir())


def load_comparison(name: str, overrides: Sequence[str] = ()) -> Comparison:
    """Resolve a shipped comparison or a YAML file; `overrides` change the recipe of every arm, or the grid itself.

    `learning_rates=[1e-4,1e-3]` and `seeds=[0,1,2]` are the grid's; every other `key=value` is the recipe's.

    Raises:
        MiloraError: no such comparison, no valid YAML, or an arm that the recipe's schema refuses.
    """
    grid = [override for override in overrides if override.partition("=")[0] in ("learning_rates", "seeds")]
    mine = [override for override in overrides if override not in grid]
    try:
        settings = OmegaConf.merge(
            read_settings(name, "comparisons", list_comparisons()), OmegaConf.from_dotlist(list(grid))
        )
        content: Any = OmegaConf.to_container(settings, resolve=True)
        content["overrides"] = [*content.get("overrides", []), *mine]
        comparison = Comparison.model_validate(content)
    except ValidationError as error:
        raise MiloraError(f"comparison {name}: {explain(error, Comparison)}", "see docs/comparisons.md") from error
    except (OmegaConfBaseException, YAMLError) as error:
        raise MiloraError(f"comparison {name}: {error}", "mend the YAML or the override") from error
    for cell in plan_runs(comparison):
        if not cell.recipe.data.validation_rows:
            raise MiloraError(
                f"comparison {name}: the best learning rate is chosen on held-out rows, and there are none",
                "set data.validation_rows",
            )
    return comparison


def plan_runs(comparison: Comparison) -> list[Cell]:
    """Return every run of the grid, seeds outermost: a comparison that is stopped early is a whole smaller one.

    Raises:
        MiloraError: an arm that the recipe's schema refuses.
    """
    return [
        Cell(arm, rate, seed, _resolve(comparison, overrides, rate, seed))
        for seed in comparison.seeds
        for arm, overrides in comparison.arms.items()
        for rate in comparison.rates(arm)
    ]


def _resolve(comparison: Comparison, overrides: list[str], rate: float, seed: int) -> Recipe:
    own = [f"training.learning_rate={rate!r}", f"seed={seed}"]
    return load_recipe(comparison.recipe, [*comparison.overrides, *overrides, *own])
