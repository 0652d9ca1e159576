"""The documentation: its pages that are made from the source are up to date, and it builds without a warning."""

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from milora.run.settings import Section

ROOT = Path(__file__).parents[1]
GENERATE = runpy.run_path(str(ROOT / "docs" / "generate.py"))


def test_pages_made_from_the_source_are_up_to_date():
    for path, text in GENERATE["write_pages"]().items():
        assert path.read_text(encoding="utf-8") == text, f"run `make docs`: {path.name} is not what its source says"


def test_every_recipe_key_has_a_meaning():
    sections = GENERATE["SECTIONS"].values()
    keys = {(section.__name__, key): field for section in sections for key, field in section.model_fields.items()}
    assert not [name for name, field in keys.items() if not field.description]
    of_keys = {section for field in keys.values() for section in find_sections(field.annotation)}
    assert of_keys <= set(sections)


def find_sections(annotation):
    """The sections that a key's type names."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return {annotation}
    return {found for part in getattr(annotation, "__args__", ()) for found in find_sections(part)}


def test_every_page_is_in_the_navigation():
    # mkdocs.yml has no tags of its own, so that a plain reader reads it.
    listed = set(re.findall(r"[\w/-]+\.md", str(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])))
    assert listed == {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site, and what was said while it was built."""
    pytest.importorskip("zensical", reason="the extra docs is not installed")
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(ROOT / "mkdocs.yml", folder)
    for part in ("docs", "src"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site", done.stdout + done.stderr


@pytest.mark.slow
def test_it_builds_without_a_warning(site):
    _, said = site
    assert "Warning" not in said and "griffe" not in said


@pytest.mark.slow
def test_formulas_are_mathml_and_nothing_is_loaded_from_other_servers(site):
    method = (site[0] / "method" / "index.html").read_text()
    assert method.count("<math") > 10 and "$" not in re.sub(r"<script.*?</script>", "", method, flags=re.DOTALL)
    for page in site[0].rglob("*.html"):
        assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=.?(?:https?:)?//", page.read_text()), page


@pytest.mark.slow
def test_the_reference_has_every_public_name(site):
    import milora

    page = (site[0] / "reference" / "index.html").read_text()
    assert not [name for name in milora.__all__[1:] if f'milora.{name}"' not in page]
