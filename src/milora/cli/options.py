"""The application, and the arguments and options that several commands share."""

from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from milora.run.settings import Section

app = typer.Typer(
    help="Fine-tune from the minor singular components of each weight, and get an ordinary LoRA out.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RUNS = Path("runs")
RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe (see milora ls) or a .yaml file.")]
RecipeOrRun = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A shipped recipe, a .yaml file, or a run directory to continue.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Changes to the recipe: evaluation.limit=8; null unsets a key."),
]
TrustCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the code that comes with the model of a run or a checkpoint.")
]
AllowPrograms = Annotated[
    bool, typer.Option("--allow-code-execution", help="Let tasks run programs that the model writes.")
]
Agree = Annotated[bool, typer.Option("--yes", help="Accept the cost of a judge without being asked.")]
Runs = Annotated[Path, typer.Option("--runs", help="The folder of run directories.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"milora {version('milora')}")
        raise typer.Exit


PrintVersion = typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")


@app.callback()
def options(version: Annotated[bool, PrintVersion] = False) -> None:
    pass


def given(context: typer.Context, section: type[Section]) -> dict[str, Any]:
    """The flags of a command that are keys of a section, as far as they are given."""
    keys = section.model_fields.keys() & context.params.keys()
    return {key: context.params[key] for key in keys if context.params[key] is not None}
