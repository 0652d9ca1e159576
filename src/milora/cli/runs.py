"""The main job and its parts: train, evaluate, run."""

from typing import Annotated

import typer

from milora.cli.options import RUNS, Agree, AllowPrograms, Overrides, RecipeOrRun, Runs, TrustCode, app, given
from milora.method.errors import MiloraError
from milora.method.options import Backend, Dtype, PromptChoice
from milora.run.directory import Permissions
from milora.run.launch import is_main_process
from milora.run.named import read_job
from milora.run.recipe import with_overrides
from milora.run.sections import EvaluationSection


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
    dtype: Annotated[
        Dtype, typer.Option(help="The dtype of a model or an adapter's base; a run has its own.")
    ] = "bfloat16",
    tasks: Annotated[str | None, typer.Option(help="Comma-separated: evaluation.tasks.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N rows of each task: evaluation.limit.")] = None,
    data_dir: Annotated[str | None, typer.Option(help="The folder of the tasks' files: evaluation.data_dir.")] = None,
    prompt: Annotated[PromptChoice | None, typer.Option(help="Which prompt: evaluation.prompt.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Prompts at a time: evaluation.batch_size.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="The longest completion: evaluation.max_new_tokens.")
    ] = None,
    backend: Annotated[Backend | None, typer.Option(help="This process, or a server: evaluation.backend.")] = None,
    url: Annotated[str | None, typer.Option(help="The server's address, ending in /v1: evaluation.url.")] = None,
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
    section = with_overrides(own, given(context, EvaluationSection), overrides or [])
    if not section.tasks:
        raise MiloraError(f"no task is given to score {name} on", "name --tasks, for example gsm8k,math")
    scores = evaluate(target, section, baseline=baseline, yes=yes)
    if is_main_process():
        typer.echo(format_table(scores))
        typer.echo(f"samples  {target.folder}")


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

    A recipe states what code may run; --allow-code-execution and --trust-remote-code are for run directories only.
    """
    job = read_job(recipe, overrides or [], Permissions(trust_remote_code, allow_code_execution))
    from milora.pipeline import locate_job, run_all

    finished = run_all(locate_job(job, runs), yes=yes)
    if finished is not None:
        typer.echo(finished.outcome)
        typer.echo(f"exported {finished.exported}\nreport   {finished.report}\nto load it:\n{finished.how_to_load}")
