"""What can be known before a model is loaded: that tasks exist, may run, have their data, and fit."""

import sys

from transformers import PreTrainedTokenizerBase

from milora.evaluation.benchmarks import BENCHMARKS, GROUPS, SUITES, Benchmark
from milora.evaluation.conditions import template_of
from milora.evaluation.forgetting import FORGETTING, check_text
from milora.evaluation.generation.context import fit
from milora.evaluation.generation.request import Request
from milora.evaluation.harness import check_task, find_task
from milora.evaluation.judges.cost import check_judge
from milora.evaluation.posing import check_turns, choose_prompt, load_posable, pictures_of
from milora.evaluation.sandbox.programs import check_sandbox
from milora.method.errors import MiloraError
from milora.models.base import context_length, load_tokenizer
from milora.run.recipe import Recipe
from milora.run.sections import EvaluationSection


def check_evaluation(recipe: Recipe, *, yes: bool = False, asks: bool = True) -> None:
    """Raise unless the recipe's tasks can be scored, as far as that can be known before training is paid for.

    `yes` agrees to what a judge costs; a process that `asks` can ask for that in its terminal.
    """
    section = recipe.evaluation
    check_tasks(section, yes=yes, asks=asks)
    tasks = expand(section)
    if not tasks:
        return
    tokenizer = load_tokenizer(recipe.model)
    context = context_length(recipe.model, tokenizer)
    for name in tasks:
        if name in BENCHMARKS:
            _check_rows(BENCHMARKS[name], recipe, tokenizer, context)
        elif name == FORGETTING:
            check_text(section.forgetting, tokenizer, context)
        else:
            check_task(name, section, tokenizer, context)


def check_tasks(section: EvaluationSection, *, yes: bool = False, asks: bool = True) -> None:
    """Raise unless all tasks exist and may run; see `check_evaluation`."""
    names = expand(section)
    judged = [name for name in names if name in BENCHMARKS and BENCHMARKS[name].judged]
    if judged:
        check_judge(section.judge, judged, yes or (asks and sys.stdin.isatty()))
    pictured = [name for name in names if name in BENCHMARKS and BENCHMARKS[name].has_pictures]
    if pictured and section.url:
        raise MiloraError(
            f"{', '.join(pictured)} shows pictures, and a server is asked with text", "leave --backend server out"
        )
    running = [name for name in names if name in BENCHMARKS and BENCHMARKS[name].runs_code]
    if running and not section.allow_code_execution:
        raise MiloraError(
            f"{', '.join(running)} runs programs that a model wrote on this machine: in a sandbox, which does not stop "
            "a determined attack",
            "set evaluation.allow_code_execution=true (--allow-code-execution), best in a container without secrets",
        )
    if running:
        check_sandbox()
    for name in names:
        if name in BENCHMARKS or name == FORGETTING:
            continue
        find_task(name)
        if section.url:
            raise MiloraError(
                f"{name} is a task of lm-eval, which runs here with backend=hf", "leave --backend server out"
            )


def expand(section: EvaluationSection) -> list[str]:
    """Groups and suites → tasks, in order, each once."""
    named = GROUPS | SUITES
    return list(dict.fromkeys(name for task in section.tasks for name in named.get(task, [task])))


def _check_rows(benchmark: Benchmark, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, context: int | None) -> None:
    """Raise unless the rows are there, and the shortest of their prompts fits."""
    section = recipe.evaluation
    rows = load_posable(benchmark, recipe.model, section, recipe.data.data_dir)
    name = template_of(recipe.data.template, section)
    template = choose_prompt(benchmark, name, tokenizer, pictures_of(recipe.model))
    check_turns(benchmark, template, rows[0])
    shortest = min((row.prompt for row in rows), key=lambda prompt: sum(len(message.words) for message in prompt))
    ids = template.encode_prompt(tokenizer, shortest)
    fit([Request("", tuple(ids), benchmark.decoding(section.max_new_tokens))], None if section.url else context)
