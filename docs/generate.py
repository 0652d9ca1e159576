"""Writes the pages that are made from the source; the tests check that they are up to date: `make docs`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from milora.comparison.paper import STATUS, Entry, format_figures, read_index
from milora.run.judge import JudgeSection
from milora.run.recipe import Recipe
from milora.run.sections import (
    AdapterSection,
    AlignmentSection,
    DataSection,
    EvaluationSection,
    ForgettingSection,
    ModelSection,
    Source,
    TrainingSection,
)
from milora.run.settings import Section

DOCS = Path(__file__).parent
MADE = "<!-- Made by docs/generate.py from {source}; edit that, and run it again. -->"
SECTIONS: dict[str, type[Section]] = {
    "": Recipe,
    "model": ModelSection,
    "adapter": AdapterSection,
    "data": DataSection,
    "data.sources": Source,
    "training": TrainingSection,
    "alignment": AlignmentSection,
    "evaluation": EvaluationSection,
    "evaluation.forgetting": ForgettingSection,
    "evaluation.judge": JudgeSection,
}
WORDS = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false"}
LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
NO_LIMIT = 1e6  # bounds from here on are those of other libraries' integers


def write_pages() -> dict[Path, str]:
    """Return each page and its text."""
    return {
        DOCS / "recipe-keys.md": "\n".join(list_keys()) + "\n",
        DOCS / "paper.md": "\n".join(list_paper()) + "\n",
    }


KEYS = """
# Recipe keys

`milora show NAME` prints the keys of a recipe with their values; `key=value` on the command line changes one, and
`key=null` unsets it. [Recipes](recipes.md) explains how they work together."""
PAPER = """
# The paper's tables

Every table and figure of [the paper](https://arxiv.org/abs/2406.09044) (third version), the command that makes it, and
whether it was run here; `milora ls --paper` prints the same list. A full run has the paper's model, data, and settings.
A run at smoke scale is the same code on a small model and a few rows. It shows that the code works; its figures are not
evidence, and are never shown beside the paper's.

| | shows | status |
|---|---|---|"""


def list_keys() -> Iterator[str]:
    yield MADE.format(source="src/milora/run/sections.py")
    yield KEYS
    for name, section in SECTIONS.items():
        schema = section.model_json_schema()
        prefix = f"{name}." if name else ""
        yield f"\n## {name or 'The recipe'}\n\n{str(section.__doc__).strip()}\n"
        yield "| key | values | default | meaning |\n|---|---|---|---|"
        for key, field in section.model_fields.items():
            values = describe(schema["properties"][key])
            default = "required" if field.is_required() else show(field.default)
            yield f"| `{prefix}{key}` | {values} | {default} | {str(field.description).replace('|', chr(92) + '|')} |"


def describe(schema: dict[str, Any]) -> str:
    """Return in words what a JSON schema accepts."""
    if "$ref" in schema:
        return "a section"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(describe(one) for one in schema["anyOf"] if one != {"type": "null"}))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{word}`" for word in schema.get("enum", [schema.get("const")]))
    if schema["type"] == "array":
        return f"list ({describe(schema['items'])})"
    if schema["type"] == "object":
        return f"names, each with a value ({describe(schema['additionalProperties'])})"
    limits = [f"{sign} {schema[key]:g}" for key, sign in LIMITS.items() if abs(schema.get(key, NO_LIMIT)) < NO_LIMIT]
    return f"{WORDS[schema['type']]} {' and '.join(limits)}".strip()


def show(default: Any) -> str:
    if default is None or default == "":
        return "–"
    return "" if isinstance(default, Section) else f"`{json.dumps(default).strip(chr(34))}`"


def list_paper() -> Iterator[str]:
    yield MADE.format(source="src/milora/comparison/paper.yaml")
    yield PAPER
    entries = read_index()
    for entry in entries:
        yield f"| {entry.place} | {entry.shows} | {STATUS[entry.status]} |"
    for entry in entries:
        if entry.status != "described":
            yield from list_entry(entry)


def list_entry(entry: Entry) -> Iterator[str]:
    yield f"\n## {entry.place}\n\n{entry.shows[0].upper()}{entry.shows[1:]}.\n"
    if entry.command:
        yield f"    {entry.command}\n"
    yield f"{STATUS[entry.status].capitalize()}. A full run needs {entry.lacks}." if entry.lacks else "Run in full."
    if entry.smoke:
        of_quickstart = ", of runs of `quickstart` ([what it showed](inspect.md#what-we-found))"
        yield f"\nAt smoke scale: `{entry.smoke}`{'' if entry.smoke != entry.command else of_quickstart}"
    if figures := entry.printed():
        ours = f"; ours are of {entry.ours_from}" if entry.ours else ""
        yield f"\nThe paper's figures{ours}:\n\n{format_figures(entry)}" if figures else ""


if __name__ == "__main__":
    for path, text in write_pages().items():
        path.write_text(text, encoding="utf-8")
        print(path)
