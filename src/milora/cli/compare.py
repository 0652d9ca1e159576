"""Comparisons, and each of their runs."""

from pathlib import Path
from typing import Annotated

import typer

from milora.cli.options import RUNS, Agree, Overrides, Runs, app
from milora.comparison.plan import load_comparison
from milora.method.errors import MiloraError
from milora.method.options import Scheduler
from milora.run.interruption import end_with


@app.command("compare")
def compare_(
    name: Annotated[str, typer.Argument(metavar="COMPARISON", help="A shipped one (see milora ls) or a .yaml file.")],
    overrides: Overrides = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time on this machine.")] = 1,
    scheduler: Annotated[Scheduler, typer.Option("--on", help="This machine, or a Ray cluster.")] = "local",
    gpus: Annotated[float, typer.Option(min=0, help="GPUs per Ray task.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would run and what it would cost.")] = False,
    yes: Agree = False,
    runs: Runs = RUNS,
) -> None:
    """Compare methods, each at its own best learning rate.

    Finished runs are kept, and a killed comparison resumes.
    """
    comparison = load_comparison(name, overrides or [])
    from milora.comparison.grid import describe_cells, describe_cost, plan_grid

    grid = plan_grid(comparison, runs.resolve())
    typer.echo(describe_cost(grid, jobs), err=True)
    if dry_run:
        typer.echo(describe_cells(grid))
        return

    from milora.pipeline import compare
    from milora.report.sentences import say_what_it_cannot, say_what_it_shows
    from milora.report.tables import format_arms, format_tests

    found = compare(grid, jobs=jobs, scheduler=scheduler, gpus=gpus, yes=yes)
    if found.page is not None:
        results = found.results
        typer.echo(f"{format_arms(results, grid.comparison, 'simple')}\n\n{format_tests(results, 'simple')}\n")
        for sentence in (*say_what_it_shows(results), *say_what_it_cannot(results, grid)):
            typer.echo(sentence)
        typer.echo(f"report   {found.page}")
    if found.failures:
        raise MiloraError("; ".join(found.failures), "fix it and run the same command again: finished runs are kept")


@app.command("work", hidden=True)
def work_(
    path: Annotated[Path, typer.Argument(metavar="RUN")],
    recipe: Annotated[Path, typer.Option()],
    factors: Annotated[Path, typer.Option()],
    parent: Annotated[int, typer.Option()],
    baseline: Annotated[bool, typer.Option("--baseline")] = False,
    yes: Annotated[bool, typer.Option("--yes")] = False,
) -> None:
    """Do one run of a comparison, as the process that compare starts for it; end when compare does."""
    end_with(parent)  # before the imports, which take seconds: it may be started again, and start others
    from milora.pipeline import run_cell

    run_cell(path, recipe, baseline=baseline, factors=factors, yes=yes)
