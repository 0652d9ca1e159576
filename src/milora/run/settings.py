"""YAML files and `key=value` overrides → settings, and what is wrong with them in words."""

import difflib
import re
from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from milora.method.errors import MiloraError
from milora.run.plain import parse_plain, read_plain

Settings = dict[str, Any]
Finish = Callable[[Settings, Path], None]

RENAMED = {
    "adapter.base": "adapter.form",
    "adapter.scale": "adapter.weighting",
    "data.prompt": "data.template",
    "evaluation.engine": "evaluation.backend",
    "evaluation.forgetting.blocks": "evaluation.forgetting.block_count, of the task forgetting in evaluation.tasks",
}


S = TypeVar("S", bound="Section")


class Section(BaseModel):
    """A group of keys: unknown keys are errors, and values are never converted."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def read_settings(name: str, kind: str, shipped: Path, finish: Finish) -> Settings:
    """Return the mapping in a .yaml file, or in a file of the folder `shipped`; `extends: NAME` is merged under it.

    A description is not inherited, because it does not describe what extends it. `kind` is the word for such a file in
    messages; `finish` makes the paths in a file's settings absolute, before they are merged.

    Raises:
        MiloraError: the file does not exist, is not a mapping, or extends itself.
    """
    return _read(name, kind, shipped, finish, ())


def _read(name: str, kind: str, shipped: Path, finish: Finish, children: tuple[Path, ...]) -> Settings:
    path = (Path(name) if name.endswith((".yaml", ".yml")) else shipped / f"{name}.yaml").resolve()
    if not path.is_file():
        names = list_shipped(shipped)
        near = difflib.get_close_matches(name, names, n=1)
        raise MiloraError(
            f"{name} is a folder, not a {kind}" if Path(name).is_dir() else f"there is no {kind} {name!r}",
            f"did you mean {near[0]}?" if near else f"choose {', '.join(names)}, or name a .yaml file",
        )
    if path in children:
        raise MiloraError(f"{name} extends itself", "remove one `extends`")
    settings = read_plain(path)
    if not isinstance(settings, dict):
        raise MiloraError(
            f"{path} is not a mapping of keys to values", "start from what `milora show quickstart` prints"
        )
    finish(settings, path.parent)
    parent = settings.pop("extends", None)
    if parent is None:
        return settings
    if not isinstance(parent, str):
        raise MiloraError(f"{path}: extends={parent} is not the name of a {kind}", "name one, or a .yaml file")
    if parent.endswith((".yaml", ".yml")):
        parent = str(path.parent / parent)
    inherited = _read(parent, kind, shipped, finish, (*children, path))
    inherited.pop("description", None)
    return merge(inherited, settings)


def merge(settings: Settings, changes: Settings) -> Settings:
    """Return the settings with the changes; a mapping changes only the keys that it names."""
    merged = dict(settings)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def list_shipped(folder: Path) -> list[str]:
    """Return the names of the YAML files in a folder of the package."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def parse_overrides(overrides: Sequence[str]) -> Settings:
    """Return `key=value` arguments as settings.

    Raises:
        MiloraError: one of them is not `key=value`, or its value is not plain YAML.
    """
    return reduce(merge, map(parse_plain, overrides), {})


def validate(schema: type[S], content: Any, name: str = "", hint: str = "see the command's --help") -> S:
    """Return the section that the content gives; `name` is that of what contains it, in a message.

    Raises:
        MiloraError: keys and values that the schema refuses, all of them.
    """
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise MiloraError(f"{name}: {_explain(error, schema)}" if name else _explain(error, schema), hint) from error


def _explain(error: ValidationError, schema: type[Section]) -> str:
    """Everything that a validation found, in one line, with the keys that were probably meant."""
    found: dict[str, list[str]] = {}
    for entry in error.errors():
        parts = [str(part) for part in entry["loc"] if not KIND.search(str(part))]
        key = ".".join(parts)
        if entry["type"] == "extra_forbidden":
            found[f"{key} {_suggest(parts, schema)}"] = []
        else:
            found.setdefault(f"{key}: " if key else "", []).append(entry["msg"].removeprefix("Value error, "))
    return "; ".join(key + " or ".join(messages) for key, messages in found.items())


# pydantic names the kinds of a value that may have several, as if they were keys.
KIND = re.compile(r"^constrained-|^\w+\[")


def _suggest(parts: Sequence[str], schema: Any) -> str:
    """What follows a key that does not exist."""
    key = ".".join(parts)
    if key in RENAMED:
        return f"is now called {RENAMED[key]}"
    *sections, last = parts
    if "." in last:
        return f"is not a key: in a file, write {last.replace('.', ': {')}: …{'}' * last.count('.')}"
    for part in sections:
        if not part.isdigit():  # a place in a list
            annotation = schema.model_fields[part].annotation
            # Of `list[Section]` and `Section | None`, the section.
            schema = next(iter(get_args(annotation)), annotation)
    near = difflib.get_close_matches(last, schema.model_fields, n=1)
    suggestion = f"did you mean {near[0]}?" if near else f"the keys here are {', '.join(schema.model_fields)}"
    return f"is not a key: {suggestion}"
