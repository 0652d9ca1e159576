"""What makes two trainings the same one."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from milora.method.files import hash_file
from milora.run.recipe import Recipe

FORMAT = 3  # of run directories; 1 had no identity.json, and in 2 a recipe without data.template meant alpaca
CHANGES_NO_WEIGHT = ("micro_batch_size", "activation_checkpointing", "log_steps", "report_to", "save_steps")
MODEL_FILES = {".safetensors", ".bin", ".gguf", ".json", ".jinja", ".model", ".txt", ".py"}


@dataclass(frozen=True, slots=True)
class Identity:
    """The format of a run directory, and the digest of everything that decides its weights."""

    format: int
    training: str


def identify(recipe: Recipe, data_files: Sequence[Path]) -> Identity:
    """Return the identity of a recipe's training.

    The digest covers model, adapter, data, training and seed: only keys that differ from their defaults, and not those
    that change no weight or only rounding. Local files, the `data_files` and those of a model's folder, count by their
    contents, wherever they are.
    """
    content = recipe.model_dump(include={"model", "adapter", "data", "training", "seed"}, exclude_defaults=True)
    training = content.get("training", {})
    for key in CHANGES_NO_WEIGHT:
        # The best step is chosen among the saved ones.
        if not (key == "save_steps" and recipe.training.keep == "best"):
            training.pop(key, None)
    if data_files:
        content["data"].pop("data_dir", None)
        place = Path(recipe.data.name).resolve()
        if any(path.resolve().is_relative_to(place) for path in data_files):  # a named set may have a folder's name
            del content["data"]["name"]
        content["data"]["sha256"] = [_hash_local(path) for path in data_files]
    folder = Path(recipe.model.name)
    if folder.is_dir():
        files = sorted(path for path in folder.iterdir() if path.suffix in MODEL_FILES)
        content["model"]["name"] = {path.name: _hash_local(path) for path in files}
    text = json.dumps(_with_plain_numbers(content), sort_keys=True)
    return Identity(FORMAT, hashlib.sha256(text.encode()).hexdigest()[:8])


def _hash_local(path: Path) -> str:
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
