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
        int | None, typer.Option(min=1, help="Components at each end; default: the adapter's rank, or 64 for a model.")
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="All components of every weight, even above 1024 columns and rows.")
    ] = False,
    text: Annotated[
        Path | None, typer.Option(help="A text file for the activity; default: text that the base generates.")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="The dtype of a model or a LoRA's base; a run has its own.")] = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="Print every figure as JSON instead of tables.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Default: RUN/inspection, or inspections/NAME.")
    ] = None,
    trust_remote_code: TrustCode = False,
) -> None:
    """Show spectra of weights, or where the updates of adapters lie.

    This writes a page, charts, and every figure as JSON. docs/inspect.md defines the figures.
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
