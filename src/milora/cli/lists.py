"""What there is: recipes, comparisons, launchers, runs."""

from pathlib import Path
from typing import Annotated

import typer
from pydantic_core import to_jsonable_python

from milora.cli.options import RUNS, Overrides, RecipeName, app
from milora.comparison.paper import format_index, read_index
from milora.comparison.plan import list_comparisons, load_comparison
from milora.method.files import format_json
from milora.run.directory import is_run
from milora.run.launch import list_launchers, locate_launcher
from milora.run.recipe import list_recipes, load_recipe


@app.command("ls")
def list_(
    paper: Annotated[bool, typer.Option("--paper", help="List the paper's tables and figures instead.")] = False,
) -> None:
    """List the shipped recipes, comparisons, and launchers.

    --paper lists every table and figure of the paper with its command, and whether it was run here.
    """
    if paper:
        typer.echo(format_index(read_index()))
        return
    shipped = {
        "Recipes, for milora run:": {name: load_recipe(name).description for name in list_recipes()},
        "Comparisons, for milora compare:": {name: load_comparison(name).description for name in list_comparisons()},
        'Launchers, for accelerate launch --config_file "$(milora launcher NAME)":': list_launchers(),
    }
    for title, found in shipped.items():
        typer.echo("\n".join([title, *(f"  {name:<24} {description}" for name, description in found.items()), ""]))


@app.command()
def launcher(name: Annotated[str, typer.Argument(metavar="NAME", help="ddp, fsdp2, zero2, or zero3.")]) -> None:
    """Print the path of a configuration for accelerate launch.

    accelerate launch --config_file "$(milora launcher zero2)" --num_processes 8 -m milora run RECIPE
    """
    typer.echo(locate_launcher(name))


@app.command()
def show(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Print every key of a recipe, resolved."""
    typer.echo(load_recipe(recipe, overrides or []).to_yaml(every_key=True), nl=False)


@app.command("runs")
def runs_(
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="FOLDER", help="A folder of run directories, or runs to compare.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON, with numbers as numbers.")] = False,
) -> None:
    """List the runs of a folder: state, results, how each continues.

    Several run directories are shown side by side, with the keys in which they differ.
    """
    from milora.report.beside import format_beside
    from milora.report.runs import format_runs, list_runs, list_these

    paths = paths or [RUNS]
    are_runs = len(paths) > 1 or is_run(paths[0])
    found = list_these(paths) if are_runs else list_runs(paths[0])
    if as_json:
        typer.echo(format_json(to_jsonable_python(found), indent=1))
    else:
        typer.echo(format_beside(found) if are_runs else format_runs(found))
