"""What lies in the weights of a model, and what training did to them."""

from pathlib import Path
from typing import Annotated

import typer

from milora.cli.options import TrustCode, app
from milora.method.options import Dtype
from milora.run.directory import Permissions


@app.command("inspect")
def inspect_(
    names: Annotated[
        list[str], typer.Argument(metavar="TARGET…", help="A model; or runs, checkpoints, and LoRAs of one base.")
    ],
    rank: Annotated[
        int | None, typer.Option(min=1, help="Components to look at; default: the adapter's rank, of a model 64.")
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="All components of every weight, also of more than 1024 columns.")
    ] = False,
    text: Annotated[
        Path | None, typer.Option(help="A text file for the activity; default: text that the base generates.")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="That of a model, or of a LoRA's base; a run has its own.")] = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="Print every figure as JSON instead of tables.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Default: RUN/inspection, or inspections/NAME.")
    ] = None,
    trust_remote_code: TrustCode = False,
) -> None:
    """Show the spectra of a model's weights, or where in them the updates of adapters lie.

    Writes a page, charts, and every figure as JSON; see docs/inspect.md for what each is.
    """
    from milora.evaluation.inspection import inspect
    from milora.evaluation.target import resolve_target
    from milora.report.inspection import choose_folder, format_json_of, write_inspection
    from milora.report.inspection_tables import format_inspection

    targets = [
        resolve_target(name, dtype, Permissions(trust_remote_code, allow_code_execution=False)) for name in names
    ]
    found = inspect(targets, rank=rank, exact=exact, text=str(text) if text else None)
    page = write_inspection(found, output or choose_folder(targets))
    typer.echo(format_json_of(found) if as_json else format_inspection(found))
    typer.echo(f"page     {page}", err=as_json)
