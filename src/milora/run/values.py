"""Kinds of values that settings have, within the bounds of what the libraries below accept."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

LARGEST = 2**31 - 1
Positive = Annotated[int, Field(gt=0, le=LARGEST)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # numpy accepts no other
Name = Annotated[str, Field(pattern=r"^[\w.-]+$", max_length=100)]  # a part of the run directory's
Fraction = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]


def _fit(place: str) -> str:
    if len(place) > 4095 or max(len(part.encode()) for part in place.split("/")) > 255:
        raise ValueError(f"{place[:20]}… is too long for a name or a path")
    return place


Place = Annotated[Text, AfterValidator(_fit)]  # a path, or a name


def _split(names: Any) -> Any:
    """`a,b` means [a, b], as on other command lines."""
    return [name.strip() for name in names.split(",")] if isinstance(names, str) else names


def _split_targets(names: Any) -> Any:
    """A string with other characters than names have is a regular expression."""
    if not isinstance(names, str) or names == "all-linear":
        return names
    if re.fullmatch(r"[\w., ]+", names):
        return _split(names)
    try:
        re.compile(names)
    except re.error as error:
        raise ValueError(f"{names} is neither a list of names nor a regular expression: {error}") from error
    return names


Targets = Annotated[Text | list[Text], BeforeValidator(_split_targets)]
Indices = Annotated[list[Annotated[int, Field(ge=0, le=LARGEST)]], Field(min_length=1)]
Names = Annotated[list[Place], BeforeValidator(_split)]
