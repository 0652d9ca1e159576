"""An inspection → JSON, charts, and one self-contained page."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from milora.evaluation.inspection import Inspection
from milora.evaluation.target import Target
from milora.method.files import format_json, write_text
from milora.report.inspection_figures import draw_inspection
from milora.report.inspection_tables import say_inspection, tabulate_every, tabulate_inspection
from milora.report.pages import render
from milora.run.directory import RunDirectory, is_run


def choose_folder(targets: Sequence[Target]) -> Path:
    """Return where an inspection goes: into the run that alone is inspected, else under the names of all."""
    if len(targets) == 1 and targets[0].recipe is not None and targets[0].who == "trained":
        run = targets[0].folder.parent
        if is_run(run):
            return RunDirectory(run, targets[0].recipe).inspection
    return Path("inspections") / "+".join(re.sub(r"[^\w.-]+", "-", target.served) for target in targets)


def write_inspection(found: Inspection, folder: Path) -> Path:
    """Write index.html, inspection.json, and the charts; return the page."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "inspection.json", format_json_of(found) + "\n")
    charts = draw_inspection(found)
    for name, chart in charts.items():
        write_text(folder / f"{name}.svg", chart.to_file())
    page = render(
        "inspection.html.jinja",
        found=found,
        sentences=say_inspection(found),
        tables=tabulate_inspection(found),
        charts=list(charts.values()),
        every_weight=tabulate_every(found),
    )
    write_text(folder / "index.html", page)
    return folder / "index.html"


def format_json_of(found: Inspection) -> str:
    """Return every figure as JSON, in six significant digits."""
    return format_json(_shorten(to_jsonable_python(asdict(found))))


def _shorten(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _shorten(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_shorten(value) for value in content]
    return float(f"{content:.6g}") if isinstance(content, float) else content
