"""Targets × benchmarks → scores and every sample."""

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate

from milora.evaluation.benchmarks.benchmark import Benchmark, Grades, make_task
from milora.evaluation.generation.local import Engine, LocalEngine
from milora.evaluation.harness import find_foreign, score_foreign
from milora.evaluation.generation.completions import RecordedModel
from milora.evaluation.sandbox.programs import describe_confinement
from milora.evaluation.generation.server import ServerEngine
from milora.evaluation.target import Target
from milora.evaluation.benchmarks import BENCHMARKS, GROUPS
from milora.evaluation.generation.wide import widen
from milora.method.errors import MiloraError
from milora.run.directory import describe_environment, locked
from milora.method.files import read_json, write_json, write_lines
from milora.run.launch import is_main_process
from milora.models.base import load_tokenizer
from milora.run.recipe import EvaluationSection, Recipe
from milora.data.sets import Row

SCORES, SAMPLES = "scores.json", "samples.jsonl"


def check_evaluation(recipe: Recipe) -> None:
    """Raise unless the recipe's tasks and their data exist: before training is paid for, not after."""
    section = recipe.evaluation
    for name in _expand(section):
        if name in BENCHMARKS:
            BENCHMARKS[name].load(section.data_dir or recipe.data.data_dir)


def evaluate(target: Target, section: EvaluationSection, *, baseline: bool = False) -> None:
    """Score a target, and with `baseline` its base before it, on the section's tasks; what is scored already stays.

    Writes <who>/<task>/{scores.json, samples.jsonl} into the target's folder. A killed evaluation goes on at the first
    completion that it lacks; under `accelerate launch` the processes share the work and the scores are the same.

    Raises:
        MiloraError: a task does not exist, its data is not there, or it runs code and that is not allowed.
    """
    section = section.model_copy(update={"data_dir": section.data_dir or target.data_dir})
    names = _expand(section)
    with locked(target.folder):
        for one in [target.base, target] if baseline and target.who != "base" else [target]:
            missing = [name for name in names if not _is_scored(one, name, section)]
            if missing:
                engine = _start(one, section)
                for name in missing:
                    _score(engine, one, name, section)


def _expand(section: EvaluationSection) -> list[str]:
    """Groups → tasks, in order, each once; all of them exist and may run."""
    names = list(dict.fromkeys(name for task in section.tasks for name in GROUPS.get(task, [task])))
    running = [name for name in names if name in BENCHMARKS and BENCHMARKS[name].runs_code]
    if running and not section.allow_code_execution:
        raise MiloraError(
            f"{', '.join(running)} runs programs that a model wrote, on this machine: in a sandbox, which is no proof "
            "against a determined attack",
            "say evaluation.allow_code_execution=true (--allow-code-execution), best in a container without secrets",
        )
    for name in names:
        if name not in BENCHMARKS:
            find_foreign(name)
    return names


def _start(target: Target, section: EvaluationSection) -> Engine:
    if section.url:
        return ServerEngine(section.url, target.served)
    return LocalEngine(widen(target.load()), load_tokenizer(target.model), section.batch_size)


def _score(engine: Engine, target: Target, name: str, section: EvaluationSection) -> None:
    output = _output(target, name)
    if name in BENCHMARKS:
        scores, samples = _score_own(engine, target, BENCHMARKS[name], section, output)
    elif isinstance(engine, LocalEngine):
        scores, samples = score_foreign(engine.harness, name, section.limit)
    else:
        raise MiloraError(f"{name} is a task of lm-eval, which runs here with engine=hf", "leave --engine server out")
    if is_main_process():
        output.mkdir(parents=True, exist_ok=True)
        write_lines(output / SAMPLES, samples)
        settings = _settings(target, name, section)
        write_json(output / SCORES, {**scores, "environment": describe_environment(), "settings": settings})


def _score_own(
    engine: Engine, target: Target, benchmark: Benchmark, section: EvaluationSection, output: Path
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    rows = benchmark.load(section.data_dir)[: section.limit]
    prompt = benchmark.resolve_prompt(_prompt(target, section))
    model = RecordedModel(engine, output)
    task = make_task(benchmark, rows, prompt, section.max_new_tokens)
    results = simple_evaluate(model=model, tasks=[task], bootstrap_iters=0)
    if not is_main_process():
        return {}, []
    completions = [sample["resps"][0][0] for sample in results["samples"][benchmark.name]]
    grades = benchmark.grade(completions, rows)
    samples = [_sample(*sample) for sample in zip(rows, completions, grades, strict=True)]
    speed = None
    if model.made and isinstance(engine, LocalEngine):
        tokens = sum(len(engine.harness.tok_encode(completion)) for completion in completions)
        speed = tokens / len(samples) * model.made / model.seconds
    scores = {
        "task": benchmark.name,
        **_accuracy([sample["correct"] for sample in samples]),
        "official": _accuracy([sample["official_correct"] for sample in samples]),
        "differ": sum(bool(sample["differ"]) for sample in samples),
        "count": len(samples),
        "no_answer": sum(sample["answer"] is None for sample in samples),
        "seconds": model.seconds,  # of this process, for so many of the samples
        "made": model.made,
        "tokens_per_second": speed,
        "prompt_sha256": hashlib.sha256(prompt.template.encode()).hexdigest(),
        "seeds": {key: value for key, value in results["config"].items() if key.endswith("_seed")},
        "confinement": describe_confinement() if benchmark.runs_code else None,
    }
    return scores, samples


def _sample(row: Row, completion: str, grades: Grades) -> dict[str, Any]:
    official, corrected = grades
    differ = None
    if official.correct != corrected.correct:
        verdicts = ("wrong", "right")
        differ = (
            f"the official grader read {official.answer!r}: {verdicts[official.correct]}; "
            f"the corrected one {corrected.answer!r}: {verdicts[corrected.correct]}"
        )
    return {
        "question": row["question"],
        "gold": row["answer"],
        "completion": completion,
        "answer": corrected.answer,
        "correct": corrected.correct,
        "official_answer": official.answer,
        "official_correct": official.correct,
        "differ": differ,
    }


def _accuracy(verdicts: list[bool]) -> dict[str, float]:
    accuracy = sum(verdicts) / len(verdicts)
    return {"accuracy": accuracy, "standard_error": (accuracy * (1 - accuracy) / max(1, len(verdicts) - 1)) ** 0.5}


def _output(target: Target, name: str) -> Path:
    return target.folder / target.who / Path(name).stem


def _is_scored(target: Target, name: str, section: EvaluationSection) -> bool:
    """Whether there are scores made under the same settings."""
    file = _output(target, name) / SCORES
    return file.is_file() and read_json(file)["settings"] == _settings(target, name, section)


def _prompt(target: Target, section: EvaluationSection) -> str | None:
    return target.prompt if section.prompt == "trained" else None


def _settings(target: Target, name: str, section: EvaluationSection) -> dict[str, Any]:
    """What decides a score besides the model."""
    settings = {"limit": section.limit, "batch_size": section.batch_size, "engine": section.engine}
    if name not in BENCHMARKS:
        return {"version": f"lm-eval {version('lm-eval')}", **settings}
    benchmark = BENCHMARKS[name]
    return {
        "version": benchmark.version,
        "prompt": benchmark.resolve_prompt(_prompt(target, section)).template,
        "data_dir": section.data_dir,
        "max_new_tokens": section.max_new_tokens or benchmark.max_new_tokens,
        "beams": benchmark.beams,
        "stops": list(benchmark.stops),
        **settings,
    }
