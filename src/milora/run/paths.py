"""Local paths in settings: relative to the file that names them, or on the command line to the working directory."""

import json
import os
from pathlib import Path
from typing import Any, get_args

from milora.method.options import DataSet
from milora.run.plain import parse_plain

# The others may be names on the hub.
ALWAYS = ("data.data_dir", "data.image_dir", "evaluation.data_dir", "evaluation.forgetting.text")
OF_DATA = ("data.data_dir", "data.image_dir", "data.name", "data.sources")
FIRST_STAGE = "alignment."
KEYS = (*ALWAYS, "model.name", *OF_DATA, *(f"{FIRST_STAGE}{key}" for key in OF_DATA), "evaluation.tasks")
WORDS = {"sampled", *get_args(DataSet)}  # go before files and folders that have the same names


def make_absolute(settings: Any, folder: Path) -> None:
    """Make the local paths in a recipe's settings absolute: a run then works from any directory."""
    for key in KEYS:
        *sections, last = key.split(".")
        key = key.removeprefix(FIRST_STAGE)  # the rows of the first stage have the same keys
        section = settings
        for part in sections:
            section = section.get(part) if isinstance(section, dict) else None
        if not isinstance(section, dict):
            continue
        value = section.get(last)
        if key == "evaluation.tasks" and isinstance(value, str):
            value = value.split(",")
        if key == "data.sources" and isinstance(value, list):
            for source in value:
                if isinstance(source, dict) and isinstance(source.get("name"), str):
                    source["name"] = locate("data.name", source["name"], folder)
        elif isinstance(value, list):
            section[last] = [locate(key, one, folder) if isinstance(one, str) else one for one in value]
        elif isinstance(value, str):
            section[last] = locate(key, value, folder)


def make_override_absolute(override: str, folder: Path) -> str:
    """Return a `key=value` override with absolute paths."""
    key = override.partition("=")[0]
    if key not in KEYS:
        return override
    value = parse_plain(override)
    make_absolute(value, folder)
    for part in key.split("."):
        value = value[part]
    return f"{key}={json.dumps(value, ensure_ascii=False)}"  # which is YAML, too


def locate(key: str, value: str, folder: Path) -> str:
    """Return the value of a key as an absolute path if it is a local path, and as it is if it is a name."""
    if value in WORDS or not value:
        return value
    if key == "evaluation.tasks":
        is_path = value.endswith((".yaml", ".yml"))
    else:
        is_path = key in ALWAYS or _is_local(value, folder)
    if not is_path:
        return value
    path = Path(value).expanduser() if value.startswith("~/") else Path(value)
    return str((folder / path).resolve())


def looks_local(name: str) -> bool:
    """Whether no name on the hub looks so."""
    return name.startswith((".", "/", "~")) or len(Path(name).parts) > 2


def _is_local(name: str, folder: Path) -> bool:
    path = folder / name
    # A mistyped name in an existing folder is not looked up on the hub. `access` also takes names that are too long.
    return looks_local(name) or os.access(path, os.F_OK) or ("/" in name and os.access(path.parent, os.F_OK))
