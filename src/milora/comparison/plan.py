"""A comparison as its file defines it: one recipe × arms × learning rates × seeds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from milora.run.paths import make_override_absolute
from milora.run.settings import Section, Settings, list_shipped, merge, parse_overrides, read_settings, validate
from milora.run.values import Name, Seed

COMPARISONS = Path(__file__).parent / "comparisons"

Rate = Annotated[float, Field(gt=0)]
OF_THE_GRID = ("training.learning_rate", "seed")


class Comparison(Section):
    """What is compared. An arm is a list of overrides of the recipe; nothing is copied.

    `arm_learning_rates` replaces the grid for the arms that it names. The first `tuning_seeds` seeds, by default all,
    run at every learning rate; the others run at each arm's best alone. `paper` has the paper's figures, in percent,
    {arm: {task: figure}}, where task/metric is a metric that is not the task's headline; `differs` says how this
    comparison differs from the paper's.
    """

    name: Name
    description: str = ""
    recipe: str
    overrides: list[str] = []
    arms: Annotated[dict[str, list[str]], Field(min_length=1)]
    learning_rates: Annotated[list[Rate], Field(min_length=1)]
    arm_learning_rates: dict[str, Annotated[list[Rate], Field(min_length=1)]] = {}
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0]
    tuning_seeds: Annotated[int, Field(ge=1)] | None = None
    paper: dict[str, dict[str, float]] = {}
    differs: str = ""

    def tunes(self, seed: int) -> bool:
        """Whether a seed runs at every learning rate, and not at the best alone."""
        return seed in self.seeds[: self.tuning_seeds]

    def rates(self, arm: str) -> list[float]:
        return sorted(self.arm_learning_rates.get(arm, self.learning_rates))

    @model_validator(mode="after")
    def _one_place_for_each_thing(self) -> Self:
        overrides = [override for arm in (self.overrides, *self.arms.values()) for override in arm]
        for override in overrides:
            if override.partition("=")[0] in OF_THE_GRID:
                raise ValueError(f"{override}: rates and seeds belong in learning_rates and seeds")
        for arm in {*self.arm_learning_rates, *self.paper} - self.arms.keys():
            raise ValueError(f"{arm} is not an arm: the arms are {', '.join(self.arms)}")
        for values in (self.learning_rates, list(map(float, self.seeds)), *self.arm_learning_rates.values()):
            if len(set(values)) < len(values):
                raise ValueError(f"{values} names something twice")
        if self.tuning_seeds is not None and self.tuning_seeds > len(self.seeds):
            raise ValueError(f"tuning_seeds={self.tuning_seeds} is more than the number of seeds, {len(self.seeds)}")
        return self


def list_comparisons() -> list[str]:
    """Return the names of the shipped comparisons."""
    return list_shipped(COMPARISONS)


def load_comparison(name: str, overrides: Sequence[str] = ()) -> Comparison:
    """Resolve a shipped comparison or a YAML file; `overrides` change the recipe of every arm, or the grid itself.

    `learning_rates=[1e-4,1e-3]`, `seeds=[0,1,2]` and `tuning_seeds=1` are the grid's; every other `key=value` is the
    recipe's.

    Raises:
        MiloraError: the comparison does not exist, is not valid YAML, or has keys and values that the schema refuses.
    """
    own = ("learning_rates", "seeds", "tuning_seeds")
    grid = [override for override in overrides if override.partition("=")[0] in own]
    of_recipe = [override for override in overrides if override not in grid]
    content = merge(read_settings(name, "comparison", COMPARISONS, _make_absolute), parse_overrides(grid))
    if isinstance(content.setdefault("overrides", []), list):
        content["overrides"] += of_recipe
    return validate(Comparison, content, f"comparison {name}", "see docs/comparisons.md")


def _make_absolute(settings: Settings, folder: Path) -> None:
    """Make the paths in a comparison's file absolute: its recipe, and those in overrides."""
    if str(settings.get("recipe")).endswith((".yaml", ".yml")):
        settings["recipe"] = str(folder / settings["recipe"])
    arms = settings.get("arms")
    for overrides in [settings.get("overrides"), *(arms.values() if isinstance(arms, dict) else ())]:
        if isinstance(overrides, list):
            overrides[:] = [make_override_absolute(str(override), folder) for override in overrides]
