"""What the source imports is declared, by the extra that needs it."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "milora"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What a floor may import beyond the core: its own extras, and those of the floors that it is never used without.
EXTRAS = {
    "models": ["train"],  # gguf, where an adapter is written for llama.cpp
    "data": ["train", "eval"],  # scikit-learn's digits
    "training": ["train"],
    "evaluation": ["eval"],
    "comparison": ["eval", "report", "ray"],
    "report": ["eval", "report"],
}


def declared(extras: list[str]) -> set[str]:
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return {normalize(re.split(r"[<>=~! ;\[]", line)[0]) for line in lines}


def normalize(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported(file: Path) -> set[str]:
    """The top-level modules of others that a file imports when it runs, not for its annotations alone."""
    found, tree = set(), ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"milora"}


DISTRIBUTIONS = packages_distributions()
FLOORS = sorted(path.name for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file())


@pytest.mark.parametrize("floor", FLOORS)
def test_imports_are_declared(floor):
    files = [SOURCE / floor] if floor.endswith(".py") else (SOURCE / floor).rglob("*.py")
    modules = {module for file in files for module in imported(file)}
    found = {module: {normalize(name) for name in DISTRIBUTIONS[module]} for module in modules}
    allowed = declared(EXTRAS.get(floor, []))
    assert not {module for module, names in found.items() if not names & allowed}
