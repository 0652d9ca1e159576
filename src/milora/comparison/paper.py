"""The reproduction index: every table and figure of the paper, its command, whether it was run, and its figures."""

import shlex
from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from milora.comparison.plan import load_comparison
from milora.run.plain import read_plain
from milora.run.settings import Section, validate

PAPER = Path(__file__).parent / "paper.yaml"

Figures = dict[str, dict[str, float]]  # {method: {what: figure}}
Status = Literal["full", "smoke", "part", "none", "described"]
STATUS: dict[Status, str] = {
    "full": "run in full",
    "smoke": "smoke scale",
    "part": "run in part",
    "none": "not run",
    "described": "see docs",
}


class Entry(Section):
    """One table or figure, or the part of a table that one command makes.

    `smoke` runs the same code on the embedded model. `paper` has the paper's figures where no comparison has them;
    `columns` are those of the comparison's figures that are meant, all if empty. `ours` were measured on `ours_from`.
    """

    place: str
    shows: str
    command: str = ""
    smoke: str = ""
    status: Status
    lacks: str = ""
    columns: list[str] = []
    paper: Figures = {}
    ours: Figures = {}
    ours_from: str = ""

    @model_validator(mode="after")
    def _never_blurred(self) -> Self:
        if bool(self.ours) != bool(self.ours_from):
            raise ValueError("ours and ours_from: a figure of ours says what it was measured on")
        if self.ours and self.status == "smoke":
            raise ValueError("ours: figures at smoke scale are not shown beside the paper's")
        if (self.status in ("full", "described")) == bool(self.lacks):
            raise ValueError(f"status={self.status} does not fit lacks={self.lacks!r}")
        return self

    @property
    def comparison(self) -> str | None:
        """The shipped comparison that the command runs."""
        words = shlex.split(self.command)
        return words[2] if words[:2] == ["milora", "compare"] else None

    def printed(self) -> Figures:
        """Return the paper's figures."""
        if self.paper or self.comparison is None:
            return self.paper
        found = load_comparison(self.comparison).paper
        return {
            method: {name: figure for name, figure in figures.items() if not self.columns or name in self.columns}
            for method, figures in found.items()
        }


class Index(Section):
    """The whole index, in the paper's order."""

    entries: list[Entry]


def read_index() -> list[Entry]:
    """Return the entries of the reproduction index."""
    return validate(Index, read_plain(PAPER), PAPER.name).entries


def format_index(entries: list[Entry]) -> str:
    """Return one line for each entry: where it is, whether it was run, and the command, or what is missing."""
    width = max(len(entry.place) for entry in entries)
    return "\n".join(
        f"{entry.place:<{width}}  {STATUS[entry.status]:<11}  {entry.command or entry.shows}" for entry in entries
    )


def format_figures(entry: Entry) -> str:
    """Return the paper's figures as a Markdown table, with ours beside them if there are any."""
    paper, ours = entry.printed(), entry.ours
    columns = list(dict.fromkeys(name for figures in paper.values() for name in figures))
    head, rows = ["method", *columns], [[method, *_numbers(paper[method], columns)] for method in paper]
    if ours:
        head += [f"{name}, ours" for name in columns]
        rows = [[*row, *_numbers(ours.get(row[0], {}), columns)] for row in rows]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _numbers(figures: dict[str, float], columns: list[str]) -> list[str]:
    return [str(figures[name]) if name in figures else "–" for name in columns]
