"""What a recipe needs and costs, before it is run."""

import typer

from milora.cli.options import RUNS, Overrides, RecipeName, Runs, app
from milora.run.recipe import load_recipe


@app.command()
def doctor(recipe: RecipeName, overrides: Overrides = None, runs: Runs = RUNS) -> None:
    """Check what a recipe needs and costs before it is run.

    It checks the model, rows, tasks, memory, time, and disk space, and does not write to the folder of runs. The exit
    code is 1 if something is missing.
    """
    job = load_recipe(recipe, overrides or [])
    from milora.pipeline import diagnose

    found = diagnose(job, runs)
    typer.echo(found)
    for problem in found.problems:
        typer.echo(f"error: {problem.message}\nhint: {problem.hint}", err=True)
    if found.problems:
        raise typer.Exit(1)
