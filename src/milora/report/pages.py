"""Templates → self-contained pages."""

from importlib.resources import files
from typing import Any

from jinja2 import Environment as Templates
from jinja2 import PackageLoader

from milora.report.charts import key_of
from milora.report.facts import say_seconds


def render(template: str, **content: Any) -> str:
    """Return a self-contained page of one of this folder's templates."""
    templates = Templates(
        loader=PackageLoader("milora", "report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    script = files("milora.report").joinpath("page.js").read_text(encoding="utf-8")  # which is not a template
    templates.globals |= {"key_of": key_of, "say_seconds": say_seconds, "script": script}
    return templates.get_template(template).render(**content)
