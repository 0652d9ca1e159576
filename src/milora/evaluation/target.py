"""What is evaluated: a run, a checkpoint of it, an adapter and its base, or a model."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.utils import CONFIG_NAME
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from milora.data.templates import choose_template
from milora.method.errors import MiloraError
from milora.method.export import replace_by_lora
from milora.method.files import read_json
from milora.method.options import Dtype, Form, TemplateName
from milora.method.variant.config import MiloraConfig
from milora.models.base import attach_adapter, load_model, load_tokenizer, read_adapter_config
from milora.run.directory import NOTHING, Permissions, RunDirectory, is_run, open_run, run_of_checkpoint, run_of_export
from milora.run.identity import hash_local, identify_model
from milora.run.paths import locate
from milora.run.recipe import Recipe
from milora.run.records import TrainingRecord
from milora.run.sections import ModelSection

EVALUATIONS = Path("evaluations")


@dataclass(frozen=True, slots=True)
class Target:
    """A model to score.

    `who` names it in the results: base, trained, or checkpoint-N. `folder` gets `<who>/<task>/`. `served` is its name
    at a server. `template` is the one it was trained with, None if that is not known.
    """

    who: str
    model: ModelSection
    folder: Path
    served: str
    adapter: Path | None = None
    form: Form = "intact"
    recipe: Recipe | None = None
    template: TemplateName | None = None

    @property
    def data_dir(self) -> str | None:
        return self.recipe.data.data_dir if self.recipe else None

    @property
    def base(self) -> "Target":
        """What it was trained from."""
        model = self.recipe.model if self.recipe else self.model
        return replace(self, who="base", model=model, adapter=None, served=model.name)

    @property
    def digest(self) -> str:
        """Twelve hex digits of everything that decides its answers; local files count by their contents."""
        content = self.model.model_dump(exclude_defaults=True) | {"dtype": self.model.dtype}
        content["name"] = identify_model(self.model.name)
        adapter = _describe_adapter(self.adapter) if self.adapter else None
        text = json.dumps([content, adapter, self.form], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the model's tokenizer, or that of an adapter which is not a run's and has its own."""
        if self.adapter and self.recipe is None and (self.adapter / "tokenizer_config.json").is_file():
            return load_tokenizer(self.model, self.adapter)
        return load_tokenizer(self.model)

    def load(self) -> PreTrainedModel | PeftModel:
        """Return the model in eval mode, with its adapter as servers hold one.

        An intact adapter becomes the ordinary LoRA that it exports, and a LoRA takes its base's dtype: no layer then
        sums factors or casts in a pass. Others are loaded as they train.

        Raises:
            MiloraError: the model or the adapter cannot be loaded, or the tokenizer has more tokens than the model.
        """
        model = load_model(self.model)  # which from_pretrained leaves in eval mode
        if self.adapter is None:
            return model
        tuned = attach_adapter(model, self.adapter, self.form)
        tokens, rows = len(self.load_tokenizer()), tuned.get_input_embeddings().weight.shape[0]
        if tokens > max(rows, len(load_tokenizer(self.model))):  # some models embed fewer than their own has
            raise MiloraError(
                f"the tokenizer of {self.adapter} has {tokens} tokens, and its model embeds {rows}: the adapter was "
                "saved without the embeddings of its new tokens",
                "save it with save_embedding_layers=True",
            )
        config = tuned.active_peft_config
        if type(config) not in (LoraConfig, MiloraConfig) or config.use_dora or self.form == "residual":
            return tuned
        if isinstance(config, MiloraConfig):
            tuned = replace_by_lora(tuned)
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.to(getattr(torch, self.model.dtype))
        return tuned


def resolve_target(name: str, dtype: Dtype = "bfloat16", permissions: Permissions = NOTHING) -> Target:
    """Return what `name` stands for: a run directory, RUN/checkpoints/checkpoint-N, an adapter's folder, or a model.

    `dtype` is that of the last two; a run has its own. See `open_run` for `permissions`.

    Raises:
        MiloraError: a run that is not trained yet.
    """
    path = Path(name)
    if is_run(path):
        return target_of_run(open_run(path, permissions))
    run = run_of_checkpoint(path, permissions)
    if run is not None:
        return replace(_target(run, path), who=path.name, served=path.name)
    if (path / CONFIG_NAME).is_file():
        source = run_of_export(path, permissions)
        base, revision = _find_base(path, source)
        trusted = permissions.trust_remote_code
        section = ModelSection(name=base, revision=revision, dtype=dtype, trust_remote_code=trusted)
        return Target("trained", section, _folder(path), path.name, path)
    located = locate("model.name", name, Path.cwd())
    section = ModelSection(name=located, dtype=dtype, trust_remote_code=permissions.trust_remote_code)
    return Target("base", section, _folder(path), name)


def _find_base(adapter: Path, source: RunDirectory | None) -> tuple[str, str | None]:
    """Return the name and the revision of the model that an adapter was made from."""
    if source:
        return source.recipe.model.name, source.recipe.model.revision
    config = read_adapter_config(adapter)
    return str(config.base_model_name_or_path), config.revision


def target_of_run(run: RunDirectory) -> Target:
    """Return a trained run as a target.

    Raises:
        MiloraError: it is not trained yet.
    """
    if not run.is_trained:
        raise MiloraError(f"{run.path} is not trained yet", "run `milora train` with its recipe first")
    return _target(run, run.trained)


def template_of_run(run: RunDirectory) -> TemplateName:
    """Return the template that a run, which may not be finished, is trained with."""
    if run.is_trained:
        return run.read(TrainingRecord).template
    return choose_template(run.recipe.data.template, lambda: load_tokenizer(run.recipe.model))


def _target(run: RunDirectory, trained: Path) -> Target:
    is_full = run.recipe.adapter.method == "full"
    return Target(
        who="trained",
        model=run.recipe.model.model_copy(update={"name": str(trained)}) if is_full else run.recipe.model,
        folder=run.evaluation,
        served=run.path.name,
        adapter=None if is_full else trained,
        form=run.recipe.adapter.form,
        recipe=run.recipe,
        template=template_of_run(run),
    )


def _describe_adapter(folder: Path) -> list[dict[str, Any]]:
    """The digests of an adapter's weights, and its config, in which PEFT writes a set in any order."""
    weights = {path.name: hash_local(path) for path in sorted(folder.glob("*.safetensors"))}
    config: dict[str, Any] = read_json(folder / CONFIG_NAME)
    canonical = {key: sorted(value, key=str) if isinstance(value, list) else value for key, value in config.items()}
    return [weights, canonical]


def _folder(path: Path) -> Path:
    """Where scores go that are not of a run: one folder for every path; their settings tell its states apart."""
    name = str(path.resolve() if path.exists() else path)
    return EVALUATIONS / f"{path.name}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
