"""The recipe: everything that decides a run, typed and strict."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from omegaconf import OmegaConf
from pydantic import model_validator

from milora.run.paths import make_absolute
from milora.run.sections import (
    ON_QUANTIZED,
    AdapterSection,
    AlignmentSection,
    DataSection,
    EvaluationSection,
    ModelSection,
    TrainingSection,
)
from milora.run.settings import Section, Settings, list_shipped, merge, parse_overrides, read_settings, validate
from milora.run.values import Name, Seed

RECIPES = Path(__file__).parent / "recipes"


class Recipe(Section):
    """Everything that decides a run; `milora show NAME` prints one."""

    name: Name
    """The first part of the run directory's name."""
    description: str = ""
    """One sentence; it is not inherited, and not kept when a key is overridden."""
    parent: str | None = None
    """The shipped recipe that this one extends, set while it is read; reports show the differences."""
    seed: Seed = 0
    """The seed of the order of rows, dropout masks, and random factors."""
    model: ModelSection
    """The base model."""
    adapter: AdapterSection = AdapterSection()
    """The method and its adapter."""
    data: DataSection
    """The training rows."""
    training: TrainingSection = TrainingSection()
    """The optimizer's settings."""
    alignment: AlignmentSection | None = None
    """LLaVA's first stage, in which the projector is trained alone. Default: there is none."""
    evaluation: EvaluationSection = EvaluationSection()
    """What the run is scored on."""

    @property
    def saves_projector(self) -> bool:
        """Whether the projector of a model with pictures is trained, in this stage or in the first."""
        is_trained = self.training.projector_learning_rate is not None or self.adapter.method == "projector"
        return is_trained or self.alignment is not None

    @property
    def first_stage(self) -> Self | None:
        """The recipe of the alignment, None if there is none."""
        if self.alignment is None:
            return None
        changes = {"data": self.alignment.data or self.data, "training": self.alignment.training, "alignment": None}
        return self.model_copy(update={**changes, "adapter": AdapterSection(method="projector")})

    @model_validator(mode="after")
    def _the_best_step_needs_held_out_rows(self) -> Self:
        if self.training.keep == "best" and not self.data.validation_rows:
            raise ValueError("training.keep=best needs held-out rows: set data.validation_rows")
        return self

    @model_validator(mode="after")
    def _one_optimizer(self) -> Self:
        default = TrainingSection.model_fields["optimizer"].default
        if self.adapter.method == "loraplus" and self.training.optimizer != default:
            raise ValueError(f"training.optimizer={self.training.optimizer}: LoRA+ has an AdamW of its own")
        return self

    @model_validator(mode="after")
    def _stopping_early_keeps_the_best_step(self) -> Self:
        if self.training.early_stopping_patience and self.training.keep != "best":
            raise ValueError("training.early_stopping_patience watches the held-out loss: set training.keep=best")
        return self

    @model_validator(mode="after")
    def _only_what_the_method_can_do(self) -> Self:
        method = self.adapter.method
        if method == "adalora" and self.training.keep == "best":
            raise ValueError("training.keep=best: AdaLoRA's ranks are final only at the end, set training.keep=last")
        if method == "adalora" and self.adapter.rank_pattern:
            raise ValueError("adapter.rank_pattern: AdaLoRA finds its ranks itself")
        if method == "full" and self.model.dtype == "float16":
            raise ValueError("model.dtype=float16: full fine-tuning would need loss scaling, set bfloat16 or float32")
        if self.model.quantization and (method not in ON_QUANTIZED or self.adapter.form == "residual"):
            form = f" with form={self.adapter.form}" if method == "milora" else ""
            raise ValueError(
                f"model.quantization={self.model.quantization}: {method}{form} needs full-precision weights; "
                f"{', '.join(ON_QUANTIZED)} do not (milora with form=intact)"
            )
        return self

    def to_yaml(self, *, every_key: bool = False) -> str:
        """Return the recipe as YAML: what differs from the defaults, or every key."""
        return OmegaConf.to_yaml(OmegaConf.create(self.model_dump(exclude_defaults=not every_key)))


def list_recipes() -> list[str]:
    """Return the names of the shipped recipes."""
    return list_shipped(RECIPES)


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Resolve a shipped recipe or a YAML file with `key=value` overrides; `extends: NAME` starts from another one.

    Raises:
        MiloraError: the recipe does not exist, is not valid YAML, or has keys and values that the schema refuses; all
            of them are named at once.
    """
    return resolve_recipe(name, read_recipe(name), overrides)


def read_recipe(name: str) -> Settings:
    """Return the settings of a shipped recipe or a YAML file, its paths absolute.

    Raises:
        MiloraError: the recipe does not exist, or is not valid YAML.
    """
    settings = read_settings(name, "recipe", RECIPES, _finish)
    return settings | ({"parent": name} if name in list_recipes() else {})


def _finish(settings: Settings, folder: Path) -> None:
    make_absolute(settings, folder)
    if settings.get("extends") in list_recipes():
        settings.setdefault("parent", settings["extends"])


def resolve_recipe(name: str, settings: Settings, overrides: Sequence[str]) -> Recipe:
    """Return the recipe that settings, as read from a file called `name`, and overrides give.

    Raises:
        MiloraError: keys and values that the schema refuses.
    """
    # With overrides it is another run than the one that the file describes.
    own = {key: value for key, value in settings.items() if key != "description"} if overrides else settings
    content = _override(own, overrides)
    return validate(Recipe, content, f"recipe {name}", "`milora show quickstart` prints every key")


def with_overrides(section: EvaluationSection, given: dict[str, Any], overrides: Sequence[str]) -> EvaluationSection:
    """Return the section with the given values, and those of `evaluation.key=value` overrides, in place of its own.

    Raises:
        MiloraError: a value that the schema refuses, or an override of another section.
    """
    changes = {"evaluation": given}
    make_absolute(changes, Path.cwd())
    content = _override(merge({"evaluation": section.model_dump()}, changes), overrides)
    return validate(_Evaluation, content).evaluation


class _Evaluation(Section):
    evaluation: EvaluationSection


def _override(settings: Settings, overrides: Sequence[str]) -> Settings:
    changes = parse_overrides(overrides)
    make_absolute(changes, Path.cwd())
    return merge(settings, changes)
