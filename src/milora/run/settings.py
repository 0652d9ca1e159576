"""YAML files and `key=value` overrides → settings, and what is wrong with them in words."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ConfigDict, ValidationError

from milora.method.errors import MiloraError

RENAMED = {
    "adapter.base": "adapter.form",
    "adapter.scale": "adapter.weighting",
    "data.prompt": "data.template",
    "evaluation.engine": "evaluation.backend",
}


class Section(BaseModel):
    """A group of keys: unknown keys are errors, and values are never converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def read_settings(name: str, kind: str, shipped: Path) -> DictConfig:
    """Return the mapping in a .yaml file, or in a file of the folder `shipped`; `extends: NAME` is merged under it.

    A description is not inherited, because it does not describe what extends it.

    `kind` is the word for such a file in messages.

    Raises:
        MiloraError: the file does not exist, or is not a mapping.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else shipped / f"{name}.yaml"
    if not path.is_file():
        names = list_shipped(shipped)
        near = difflib.get_close_matches(name, names, n=1)
        raise MiloraError(
            f"there is no {kind} {name!r}",
            f"did you mean {near[0]}?" if near else f"choose {', '.join(names)}, or name a .yaml file",
        )
    settings = OmegaConf.load(path)
    if not isinstance(settings, DictConfig):
        raise MiloraError(
            f"{path} is not a mapping of keys to values", "start from what `milora show quickstart` prints"
        )
    extended = settings.pop("extends", None)
    if not extended:
        return settings
    parent = read_settings(extended, kind, shipped)
    parent.pop("description", None)
    merged = OmegaConf.merge(parent, settings)
    assert isinstance(merged, DictConfig)
    return merged


def list_shipped(folder: Path) -> list[str]:
    """Return the names of the YAML files in a folder of the package."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def parse_overrides(overrides: Sequence[str]) -> DictConfig:
    """Return `key=value` arguments as settings.

    Raises:
        MiloraError: an argument without "=".
    """
    for override in overrides:
        if "=" not in override:
            raise MiloraError(f"{override!r} is not key=value", "write for example training.learning_rate=1e-4")
    return OmegaConf.from_dotlist(list(overrides))


def explain(error: ValidationError, schema: type[Section]) -> str:
    """Return everything that a validation found, in one line, with the keys that were probably meant."""
    return "; ".join(_explain_one(entry["type"], entry["loc"], entry["msg"], schema) for entry in error.errors())


def _explain_one(kind: str, location: tuple[int | str, ...], message: str, schema: Any) -> str:
    key = ".".join(map(str, location))
    if kind != "extra_forbidden":
        return f"{key}: {message.removeprefix('Value error, ')}" if key else message
    if key in RENAMED:
        return f"{key} is now called {RENAMED[key]}"
    for part in location[:-1]:
        # An integer is a place in a list of sections.
        schema = get_args(schema)[0] if isinstance(part, int) else schema.model_fields[part].annotation
    near = difflib.get_close_matches(str(location[-1]), schema.model_fields, n=1)
    suggestion = f"did you mean {near[0]}?" if near else f"the keys here are {', '.join(schema.model_fields)}"
    return f"{key} is not a key: {suggestion}"
