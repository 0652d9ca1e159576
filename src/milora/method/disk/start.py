"""Initializes an adapter from a checkpoint on disk, shard by shard: the whole model is never in memory.

    OUT/                            intact: an adapter in PEFT's layout
      adapter_model.safetensors     A, B, A₀ and B₀
      initialization.json           the options, and the report of each layer
      adapter_config.json           written last
    OUT/                            residual: a model in the shards and dtypes of the checkpoint
      *.safetensors, tokenizer, …   W − s·B₀A₀ in place of each target's W
      adapter/                      A₀ and B₀ as an ordinary LoRA on it
      initialization.json
      config.json                   written last

Before that, all files are in OUT/.unfinished-<digest of the options and of the weight files>: factors/ contains the
factors found so far, whole/ the finished files, and rounding/ the rounding errors of each finished shard.
"""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from torch import Tensor
from tqdm import tqdm
from transformers.utils import CONFIG_NAME as MODEL_CONFIG_NAME

from milora.method.coverage import measure_coverage
from milora.method.disk.record import ADAPTER, LAST, RECORD, describe_options, digest, is_finished
from milora.method.disk.shards import create_tensors, open_checkpoint, overwriting, read_tensor
from milora.method.disk.stored import StoredWeights, find_weights
from milora.method.factors import Choice, decompose_layers, flatten_stack
from milora.method.files import hash_file, read_json, replacing, write_bytes, write_json
from milora.method.initialization import LayerReport, find_warnings, report_layer
from milora.method.layers import fitting_layers
from milora.method.options import Form, Unsupported
from milora.method.unsupported import adapter_layers, is_decomposable, leave_ordinary
from milora.method.variant.config import lora_config, make_milora_config, make_ordinary_config
from milora.method.variant.linear import INITIAL_A, INITIAL_B, ORIGIN
from milora.method.variant.residual import subtract_product
from milora.method.variant.weights import LENGTH, describe_weight, encode_description, is_transposed, trained_factors


def initialize_checkpoint(
    model: PeftModel,
    folder: Path,
    output: Path,
    choice: Choice,
    *,
    form: Form = "intact",
    unsupported: Unsupported = "error",
    jobs: int = 1,
    cache: Path | None = None,
) -> list[str]:
    """Write an adapter initialized from the weights in `folder`; if killed at any moment, the next call resumes.

    The memory needed is that of one weight and its decomposition per job.

    Args:
        model: a PeftModel on the meta device, with an adapter "default".
        folder: the checkpoint, in safetensors.
        output: a folder for the adapter, or for the residual model and its adapter.
        choice, jobs, cache: see `decompose_layers`.
        unsupported: see `initialize_lora_milora_weights`; layers that are not linear are always refused.
        form: "residual" also writes a model of W − s·B₀A₀, from which any trainer that supports PEFT can start.

    Returns the warnings, as sentences; immediately if `output` is finished.

    Raises:
        MiloraError: see `initialize_lora_milora_weights`; or the checkpoint is incomplete, or `output` was made with
            other options.
    """
    layers = fitting_layers(model, "default", form, unsupported)
    ordinary = {name: layer for name, layer in adapter_layers(model, "default").items() if name not in layers}
    if not all(is_decomposable(layer) for layer in ordinary.values()):
        fitting_layers(model, "default", form)  # raises
    sentences = leave_ordinary(model, "default") + measure_coverage(model, "default").warnings
    checkpoint = open_checkpoint(folder)
    weights = find_weights(model, layers, checkpoint)
    config = lora_config(model, "default")
    options = describe_options(config, choice, form, checkpoint)
    output.mkdir(parents=True, exist_ok=True)
    unfinished = output / f".unfinished-{digest(options)}"
    leftovers = list(output.glob(".unfinished-*"))
    for leftover in leftovers:
        if any((leftover / "whole" / name).is_file() for name in LAST):
            _move(leftover / "whole", output)
    finished = is_finished(output, options)
    for leftover in leftovers:
        if finished or leftover != unfinished:
            shutil.rmtree(leftover)
    if not finished:
        for file in unfinished.rglob(".*"):
            file.unlink()  # half-written by a killed process
        work = _Work(unfinished, weights, ordinary, choice, form, sentences)
        if form == "intact":
            work.write_intact(config, options, jobs, cache)
        else:
            work.write_residual(config, options, jobs, cache, output)
        _move(work.whole, output)
        shutil.rmtree(unfinished)
    warnings: list[str] = read_json(output / RECORD)["warnings"]
    return warnings


@dataclass(frozen=True, slots=True)
class _Work:
    """The unfinished folder, and the inputs of its files."""

    unfinished: Path
    weights: StoredWeights
    ordinary: dict[str, LoraLayer]
    choice: Choice
    form: Form
    sentences: list[str]

    @property
    def whole(self) -> Path:
        return self.unfinished / "whole"

    def write_intact(self, config: LoraConfig, options: dict[str, Any], jobs: int, cache: Path | None) -> None:
        reports = self._write_factors(self.whole / SAFETENSORS_WEIGHTS_NAME, jobs, cache)
        warnings = self.sentences + find_warnings(reports, self.choice.weighting)
        self._write_record(reports, {"options": options, "warnings": warnings})
        self._write_config(self.whole, make_milora_config(config, "default", certified=True))

    def write_residual(
        self, config: LoraConfig, options: dict[str, Any], jobs: int, cache: Path | None, output: Path
    ) -> None:
        adapter, checkpoint = self.whole / ADAPTER, self.weights.checkpoint
        factors = adapter / SAFETENSORS_WEIGHTS_NAME
        reports = self._write_factors(factors, jobs, cache)
        errors = self._write_shards(factors)
        reports = {name: replace(report, rounding_error=errors[name]) for name, report in reports.items()}
        config = make_ordinary_config(config)
        config.base_model_name_or_path = str(output.resolve())
        config.revision = name_start(digest := hash_file(factors))
        self._write_config(adapter, config)
        for file in checkpoint.companions:
            if file.name not in LAST:
                write_bytes(self.whole / file.name, file.read_bytes())
        record = {
            "options": options,
            "warnings": self.sentences + find_warnings(reports, self.choice.weighting) + _warn_of_rounding(errors),
            # These two are needed to subtract A₀ and B₀ from a trained adapter.
            "adapter_sha256": digest,
            "scaling": {name: layer.scaling["default"] for name, layer in self.weights.layers.items()},
        }
        self._write_record(reports, record)
        write_bytes(self.whole / MODEL_CONFIG_NAME, (checkpoint.folder / MODEL_CONFIG_NAME).read_bytes())

    def _write_factors(self, path: Path, jobs: int, cache: Path | None) -> dict[str, LayerReport]:
        """Write each factor as a tensor of the adapter once it is found, in the dtype of the adapter's layer."""
        layers = self.weights.layers
        tensors = {}
        for name, layer in layers.items():
            parts = (("lora_A", INITIAL_A), ("lora_B", INITIAL_B))
            for weight, (trained, initial) in zip(trained_factors(layer, "default"), parts, strict=True):
                for part in (trained, initial) if self.form == "intact" else (trained,):
                    tensors[f"{name}.{part}.weight"] = tuple(weight.shape), weight.dtype
            if self.form == "intact":
                tensors[f"{name}.{ORIGIN}.weight"] = (LENGTH,), torch.uint8
        for name, layer in self.ordinary.items():
            for part, weight in zip(("lora_A", "lora_B"), trained_factors(layer, "default"), strict=True):
                tensors[f"{name}.{part}.weight"] = tuple(weight.shape), weight.dtype
        path.parent.mkdir(parents=True, exist_ok=True)
        found = decompose_layers(
            layers, "default", self.choice, self.weights.read, jobs=jobs, cache=cache or self.unfinished / "factors"
        )
        reports: dict[str, LayerReport] = {}
        with replacing(path) as temporary:
            create_tensors(temporary, tensors)
            with overwriting(temporary) as write:
                for name, stack in found:
                    reports |= report_layer(name, layers[name], stack)
                    A, B = flatten_stack(stack)
                    values = {"lora_A": A, "lora_B": B, INITIAL_A: A, INITIAL_B: B}
                    if self.form == "intact":
                        matrices = (self.weights.read(name, index) for index in range(len(stack)))
                        values[ORIGIN] = encode_description(describe_weight(matrices))
                    for part, factor in values.items():
                        key = f"{name}.{part}.weight"
                        if key in tensors:
                            write(key, factor.to(tensors[key][1]))
                self._write_ordinary(write, tensors)
        return reports

    def _write_ordinary(self, write: Callable[[str, Tensor], None], tensors: dict[str, Any]) -> None:
        """Write A of each ordinary LoRA as PEFT draws it, but from the seed; B is zero, as the file is already."""
        generator = torch.Generator().manual_seed(self.choice.seed)
        for name in self.ordinary:
            shape, dtype = tensors[f"{name}.lora_A.weight"]
            A = torch.nn.init.kaiming_uniform_(torch.empty(shape), a=5**0.5, generator=generator)
            write(f"{name}.lora_A.weight", A.to(dtype))

    def _write_shards(self, factors: Path) -> dict[str, float]:
        """Copy each shard and overwrite its targets with W − s·B₀A₀; return the rounding error of each layer."""
        rounding = self.unfinished / "rounding"
        rounding.mkdir(exist_ok=True)
        errors: dict[str, float] = {}
        for shard in tqdm(self.weights.checkpoint.shards, desc="subtracting", disable=None):
            target, lost = self.whole / shard, rounding / f"{shard}.json"
            if not target.is_file():
                with replacing(target) as temporary:
                    shutil.copyfile(self.weights.checkpoint.folder / shard, temporary)
                    write_json(lost, self._subtract(shard, factors, temporary))
            errors |= read_json(lost)
        return errors

    def _subtract(self, shard: str, factors: Path, path: Path) -> dict[str, float]:
        errors = {}
        with overwriting(path) as write:
            for name, tensor in self.weights.within(shard).items():
                layer = self.weights.layers[name]
                A, B = (read_tensor(factors, f"{name}.{part}.weight") for part in ("lora_A", "lora_B"))
                stored, scaling = self.weights.checkpoint.read(tensor), layer.scaling["default"]
                residual, errors[name] = subtract_product(stored, A, B, scaling, is_transposed(layer))
                write(tensor, residual)
        return errors

    def _write_record(self, reports: dict[str, LayerReport], record: dict[str, Any]) -> None:
        record["layers"] = {name: asdict(report) for name, report in reports.items()}
        write_json(self.whole / RECORD, record)

    def _write_config(self, folder: Path, config: LoraConfig) -> None:
        config.inference_mode = True
        for option in ("target_modules", "target_parameters"):
            if isinstance(getattr(config, option), set):
                setattr(config, option, sorted(getattr(config, option)))  # the order of a set differs between processes
        config.save_pretrained(str(self.unfinished))
        write_bytes(folder / CONFIG_NAME, (self.unfinished / CONFIG_NAME).read_bytes())


def name_start(digest: str) -> str:
    """Return the revision of a base model in a START/adapter by the digest of its factors.

    Trainers keep it in the config of what they train, so that the start is known wherever it is moved.
    """
    return f"start-{digest[:16]}"


def _warn_of_rounding(errors: dict[str, float]) -> list[str]:
    worst = max(errors, key=lambda name: errors[name])
    if errors[worst] < 1e-3:
        return []
    return [
        f"rounding W − s·B₀A₀ to the checkpoint's dtype lost up to {errors[worst]:.2g} of s·B₀A₀ ({worst}): at step 0 "
        'the model differs from its base by that error; form="intact" has none'
    ]


def _move(whole: Path, output: Path) -> None:
    files = [file for file in whole.rglob("*") if file.is_file()]
    for file in sorted(files, key=lambda file: (file.parent == whole and file.name in LAST, file)):
        target = output / file.relative_to(whole)
        target.parent.mkdir(exist_ok=True)
        file.replace(target)
