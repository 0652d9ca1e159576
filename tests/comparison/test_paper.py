"""The reproduction index: its commands exist, its figures are the paper's, and what it prints is what its file says."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from milora.cli import app
from milora.comparison.paper import Entry, format_figures, read_index
from milora.comparison.plan import list_comparisons, load_comparison
from milora.run.recipe import load_recipe

ROOT = Path(__file__).parents[2]
ENTRIES = read_index()


def test_every_table_and_every_comparison_of_one_is_in_it():
    numbers = {int(number) for entry in ENTRIES for number in re.findall(r"\d+", entry.place.partition(",")[0])}
    assert numbers >= {*range(1, 10), 10, 12, 13, 14}
    named = {entry.comparison for entry in ENTRIES} | {shlex.split(entry.smoke)[2] for entry in ENTRIES if entry.smoke}
    assert {name for name in list_comparisons() if name.startswith("table")} <= named


@pytest.mark.parametrize(
    "command", sorted({word for entry in ENTRIES for word in (entry.command, entry.smoke) if word})
)
def test_each_command_names_what_is_shipped(command):
    program, verb, *arguments = shlex.split(command)
    if program == "python":
        assert (ROOT / verb).is_file() and all(option in (ROOT / verb).read_text() for option in arguments)
        return
    assert program == "milora" and verb in get_command(app).commands
    if verb == "compare":
        name, *overrides = arguments
        comparison = load_comparison(name, overrides)
        load_recipe(comparison.recipe, comparison.overrides)
        assert name.endswith("-smoke") == bool(comparison.differs)
    if verb == "show":
        load_recipe(*arguments)


def test_the_paper_s_figures_are_beside_ours_only_where_ours_were_measured():
    for entry in ENTRIES:
        assert bool(entry.printed()) == (entry.place not in ("Figure 1", "Figure 2", "Tables 10 to 12")), entry.place
    (beside,) = [format_figures(entry) for entry in ENTRIES if entry.ours]
    assert "| method | minutes | minutes, ours |" in beside and "| r = 64 | 6.0 | 0.37 |" in beside
    code = next(entry for entry in ENTRIES if entry.place == "Table 5, code")
    assert "gsm8k" not in format_figures(code) and "| MiLoRA | 24.4 |" in format_figures(code)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ours": {"LoRA": {"gsm8k": 1.0}}}, "says what it was measured on"),
        ({"ours": {"LoRA": {"gsm8k": 1.0}}, "ours_from": "here", "status": "smoke"}, "at smoke scale"),
        ({"status": "full"}, "does not fit lacks"),
        ({"lacks": ""}, "does not fit lacks"),
    ],
)
def test_an_entry_cannot_claim_what_was_not_run(change, message):
    entry = next(entry for entry in ENTRIES if entry.place == "Table 2")
    with pytest.raises(ValueError, match=message):
        Entry.model_validate(entry.model_dump() | change)


def test_it_is_printed_one_line_for_each_entry(call):
    code, out, _ = call("ls", "--paper")
    lines = out.splitlines()
    assert code == 0 and len(lines) == len(ENTRIES)
    assert all(line.startswith(entry.place) for line, entry in zip(lines, ENTRIES, strict=True))
    assert next(line for line in lines if line.startswith("Table 2 ")).endswith("milora compare table2")
