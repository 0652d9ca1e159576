"""What makes two trainings the same one."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

from milora.method.files import hash_file
from milora.method.options import DataSet
from milora.run.recipe import Recipe

FORMAT = 2  # of run directories; those of format 1 have no identity.json
MODEL_FILES = {".safetensors", ".bin", ".gguf", ".json", ".jinja", ".model", ".txt", ".py"}


@dataclass(frozen=True, slots=True)
class Identity:
    """The format of a run directory, and the digest of everything that decides its weights."""

    format: int
    training: str


def identify(recipe: Recipe, data_files: Sequence[Sequence[Path]], first: Identity | None = None) -> Identity:
    """Return the identity of a recipe's training.

    The digest covers model, adapter, data, training and seed: only keys that differ from their defaults, and not those
    that change no weight or only rounding. Local files, the `data_files` of each source and those of a model's folder,
    count by their contents, wherever they are; pictures count by their paths in these files. `first` is the identity of
    the first stage, the alignment.
    """
    content = recipe.model_dump(include={"model", "adapter", "data", "training", "seed"}, exclude_defaults=True)
    for key in _without_effect(recipe):
        content.get("training", {}).pop(key, None)
    data = content["data"]
    for key in ("data_dir", "image_dir"):  # where the files of named sets and the pictures are
        data.pop(key, None)
    for source, files in zip(data.get("sources", [data]), data_files, strict=True):
        if files:
            if source["name"] not in get_args(DataSet):  # but that of a file
                del source["name"]
            source["sha256"] = [hash_local(path) for path in files]
    content["model"]["name"] = identify_model(recipe.model.name)
    if first is not None:
        content["alignment"] = first.training
    text = json.dumps([FORMAT, _with_plain_numbers(content)], sort_keys=True)
    return Identity(FORMAT, hashlib.sha256(text.encode()).hexdigest()[:8])


def _without_effect(recipe: Recipe) -> list[str]:
    """The keys of `training` that change no weight, or only rounding."""
    keys = ["activation_checkpointing", "activation_offloading", "liger_kernels", "log_steps", "report_to"]
    if recipe.training.keep == "last":
        keys.append("save_steps")  # the best step is chosen among the saved ones
        # Dropout draws its masks per pass, LoRA-GA adds the gradients of passes, and the best step is that of the
        # lowest mean over passes.
        if recipe.adapter.dropout == 0 and recipe.adapter.method != "lora_ga":
            keys += ["micro_batch_size", "packing"]
    return keys


def identify_model(name: str) -> Any:
    """Return the digests of a local model's files, and of another one the name."""
    path = Path(name)
    if path.is_dir():
        return hash_folder(path)
    return hash_local(path) if path.is_file() else name


def hash_folder(folder: Path) -> dict[str, str]:
    """Return the sha256 of each of a model's or an adapter's files, by name."""
    return {path.name: hash_local(path) for path in sorted(folder.iterdir()) if path.suffix in MODEL_FILES}


def hash_local(path: Path) -> str:
    """Return the sha256 of a file, computed again only when the file has changed."""
    state = path.stat()
    return _hash_once(path, state.st_size, state.st_mtime_ns)


@cache
def _hash_once(path: Path, size: int, modified: int) -> str:
    """A comparison asks for the same files once per run."""
    return hash_file(path)


def _with_plain_numbers(content: Any) -> Any:
    """YAML has 1 and 1.0 for one number."""
    if isinstance(content, dict):
        return {key: _with_plain_numbers(value) for key, value in content.items() if value != {}}
    if isinstance(content, list):
        return [_with_plain_numbers(value) for value in content]
    return int(content) if isinstance(content, float) and content.is_integer() else content
