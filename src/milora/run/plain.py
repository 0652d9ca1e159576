"""YAML text → plain settings: mappings, lists, numbers and text, which mean the same on every machine."""

import io
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from milora.method.errors import MiloraError

DEEPEST = 10  # levels; a recipe has three


def read_plain(path: Path) -> Any:
    """Return what a YAML file contains; None for one number, and for nothing an empty mapping.

    Raises:
        MiloraError: it is not plain YAML in UTF-8; the line is named.
    """
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise MiloraError(f"{path}, line {line}: the text is not UTF-8", "save the file as UTF-8") from error
    _check_plain(str(path), text)
    try:
        return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))
    except OSError:  # OmegaConf's word for a document that is one number
        return None
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, RecursionError) as error:
        raise MiloraError(f"{path}{_explain(error)}", "fix the YAML") from error


def parse_plain(override: str) -> Any:
    """Return a `key=value` argument as settings; the value is YAML.

    Raises:
        MiloraError: it is not plain YAML, or there is no "=".
    """
    key, equals, value = override.partition("=")
    if not (key and equals):
        raise MiloraError(f"{override!r} is not key=value", "write for example training.learning_rate=1e-4")
    _check_plain(key, value)
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([override]))
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, RecursionError) as error:
        raise MiloraError(f"{key}{_explain(error)}", "put quotes around the value, or fix it") from error


def _check_plain(place: str, text: str) -> None:
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            fault = _find_fault(event, depth)
            if fault:
                line = event.start_mark.line + 1 if event.start_mark else 1
                raise MiloraError(f"{place}, line {line}: {fault[0]}", fault[1])
    except yaml.YAMLError as error:
        raise MiloraError(f"{place}{_explain(error)}", "fix the YAML") from error


def _find_fault(event: yaml.Event, depth: int) -> tuple[str, str] | None:
    """What is wrong, and the way out."""
    if depth > DEEPEST:
        return f"more than {DEEPEST} levels of settings", "`milora show quickstart` prints every key"
    tag = getattr(event, "tag", None)
    if tag is not None:
        return f"{tag} is a tag, which settings cannot have", "write the value without it"
    if not isinstance(event, yaml.ScalarEvent):
        return None
    if "${" in event.value:
        # Resolved, it would end in files that are shared: the run's recipe and its report.
        return f"{event.value!r} refers to another value", "write the value itself, or pass it as key=value"
    if event.value == "???":
        return "'???' stands for a value that is missing", "write the value"
    if "\0" in event.value:
        return f"{event.value!r} contains a null character", "remove it"
    return None


def _explain(error: Exception) -> str:
    """Where the error is, if it says so, and what it is, in one line."""
    mark = getattr(error, "problem_mark", None)
    reason = (getattr(error, "problem", None) or str(error)).partition("\n")[0].partition(". ")[0]
    return f", line {mark.line + 1}, column {mark.column + 1}: {reason}" if mark else f": {reason}"
