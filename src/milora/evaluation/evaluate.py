"""A model × benchmarks → scores and every sample."""

import time
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from milora.evaluation.benchmark import Benchmark, make_task
from milora.evaluation.tasks import BENCHMARKS
from milora.method.errors import MiloraError
from milora.run.directory import RunDirectory
from milora.run.files import read_json, write_json, write_lines
from milora.run.models import attach_adapter, load_model, load_tokenizer
from milora.run.recipe import EvaluationSection, Recipe

SCORES, SAMPLES = "scores.json", "samples.jsonl"


def find_benchmarks(names: list[str]) -> list[Benchmark]:
    """Return the benchmarks of these names.

    Raises:
        MiloraError: a name that is none of them.
    """
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        raise MiloraError(f"there is no task {', '.join(unknown)}", f"tasks are {', '.join(BENCHMARKS)}")
    return [BENCHMARKS[name] for name in names]


def check_evaluation(recipe: Recipe) -> None:
    """Raise unless the recipe's tasks and their data exist: before training is paid for, not after."""
    for benchmark in find_benchmarks(recipe.evaluation.tasks):
        benchmark.load(recipe.evaluation.data_dir or recipe.data.data_dir)


def evaluate_run(run: RunDirectory, section: EvaluationSection, *, baseline: bool = True) -> None:
    """Score a trained run, and the base it started from, on the section's tasks; what is scored already stays.

    Writes evaluation/{base,trained}/<task>/; a killed evaluation goes on at the first task that lacks its scores.

    Raises:
        MiloraError: the run is not trained, a task does not exist, or its data is not there.
    """
    if not run.is_trained:
        raise MiloraError(f"{run.path} is not trained yet", "run `milora train` with its recipe first")
    benchmarks, recipe = find_benchmarks(section.tasks), run.recipe
    section = section.model_copy(update={"data_dir": section.data_dir or recipe.data.data_dir})
    who = ["base", "trained"] if baseline else ["trained"]
    if all(_is_scored(run.path / "evaluation" / name, benchmarks, section, recipe.data.prompt) for name in who):
        return
    tokenizer = load_tokenizer(recipe.model)
    model: PreTrainedModel | PeftModel = load_model(recipe.model)
    for name in who:
        if name == "trained":
            model = attach_adapter(model, run)
        evaluate_model(model, tokenizer, section, run.path / "evaluation" / name, recipe.data.prompt)


def evaluate_model(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    section: EvaluationSection,
    output: Path,
    run_prompt: str,
) -> None:
    """Score a model on the section's tasks into `output`/<task>/{scores.json, samples.jsonl}."""
    adds_bos = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    harness = HFLM(pretrained=model.eval(), tokenizer=tokenizer, batch_size=section.batch_size, add_bos_token=adds_bos)
    for benchmark in find_benchmarks(section.tasks):
        if not _is_scored(output, [benchmark], section, run_prompt):
            _score(harness, benchmark, section, output / benchmark.name, run_prompt)


def _score(harness: HFLM, benchmark: Benchmark, section: EvaluationSection, output: Path, run_prompt: str) -> None:
    prompt = benchmark.resolve_prompt(run_prompt)
    task = make_task(benchmark, prompt, data_dir=section.data_dir, max_new_tokens=section.max_new_tokens)
    started = time.perf_counter()
    results = simple_evaluate(model=harness, tasks=[task], limit=section.limit, bootstrap_iters=0)
    seconds = time.perf_counter() - started
    samples = [
        {
            "question": sample["doc"]["question"],
            "gold": sample["doc"]["answer"],
            "completion": sample["resps"][0][0],
            "answer": _shown(benchmark.extract(sample["resps"][0][0])),
            "correct": bool(sample["accuracy"]),
        }
        for sample in results["samples"][benchmark.name]
    ]
    count = len(samples)
    accuracy = sum(sample["correct"] for sample in samples) / count
    output.mkdir(parents=True, exist_ok=True)
    write_lines(output / SAMPLES, samples)
    write_json(
        output / SCORES,
        {
            "task": benchmark.name,
            "accuracy": accuracy,
            "standard_error": (accuracy * (1 - accuracy) / max(1, count - 1)) ** 0.5,
            "count": count,
            "no_answer": sum(sample["answer"] is None for sample in samples),
            "seconds": seconds,
            "settings": _settings(benchmark, section, run_prompt),
        },
    )


def _shown(answer: object | None) -> str | None:
    return None if answer is None else str(answer)


def _is_scored(output: Path, benchmarks: list[Benchmark], section: EvaluationSection, run_prompt: str) -> bool:
    """Whether every benchmark has scores made under the same settings."""
    return all(
        (file := output / benchmark.name / SCORES).is_file()
        and read_json(file)["settings"] == _settings(benchmark, section, run_prompt)
        for benchmark in benchmarks
    )


def _settings(benchmark: Benchmark, section: EvaluationSection, run_prompt: str) -> dict[str, Any]:
    """What decides a score besides the model."""
    return {
        "version": benchmark.version,
        "prompt": benchmark.resolve_prompt(run_prompt).template,
        "data_dir": section.data_dir,
        "limit": section.limit,
        "max_new_tokens": section.max_new_tokens or benchmark.max_new_tokens,
        "beams": benchmark.beams,
        "batch_size": section.batch_size,
    }
