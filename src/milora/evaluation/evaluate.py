"""Targets × benchmarks → scores and every sample."""

import hashlib
import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from milora.data.rows import find_file
from milora.data.sets import NAMED_SETS
from milora.data.templates import Template, resolve_template
from milora.evaluation.benchmarks import BENCHMARKS, GROUPS, Benchmark
from milora.evaluation.benchmarks.benchmark import HEADLINE
from milora.evaluation.forgetting import CROSS_ENTROPY, FORGETTING, check_text, score_forgetting
from milora.evaluation.generation.completions import complete_all
from milora.evaluation.generation.local import LocalBackend
from milora.evaluation.generation.request import Backend, Request
from milora.evaluation.generation.server import ServerBackend
from milora.evaluation.generation.wide import widen
from milora.evaluation.harness import find_task, score_task
from milora.evaluation.sandbox.programs import describe_confinement
from milora.evaluation.scores import (
    Cost,
    Sample,
    Scores,
    Settings,
    average,
    measure_grades,
    write_scores,
)
from milora.evaluation.target import Target
from milora.method.errors import MiloraError
from milora.models.base import load_tokenizer
from milora.run.directory import ScoreFolder, locked
from milora.run.environment import describe_environment
from milora.run.identity import hash_local
from milora.run.launch import is_main_process
from milora.run.recipe import EvaluationSection, Recipe


def check_evaluation(recipe: Recipe) -> None:
    """Raise unless the recipe's tasks and their data exist: before training is paid for, not after."""
    section = recipe.evaluation
    for name in _expand(section):
        if name in BENCHMARKS:
            BENCHMARKS[name].load(section.data_dir or recipe.data.data_dir)
    check_text(section.forgetting)


def evaluate(target: Target, section: EvaluationSection, *, baseline: bool = False) -> list[Scores]:
    """Score a target, and with `baseline` its base before it, on the section's tasks; return all scores.

    What is scored already under the same settings is read. A killed evaluation resumes at the first completion that it
    lacks; under `accelerate launch` the processes share the work, and the scores are the same.

    Raises:
        MiloraError: a task does not exist, its data is not there, or it runs code and that is not allowed.
    """
    targets = [target.base, target] if baseline and target.who != "base" else [target]
    _expand(section)  # so that a wrong task stops it before a model is loaded
    with locked(target.folder):
        for one in targets:
            missing = [name for name in _list_tasks(one, section) if not _folder(one, name, section).has(Scores)]
            own = [name for name in missing if name != FORGETTING]
            backend = _start(one, section) if own else None
            for name in missing:
                _score(one, name, section, backend)
    return [scores for one in targets for scores in find_scores(one, section)]


def find_scores(target: Target, section: EvaluationSection) -> list[Scores]:
    """Return the scores of a target under these settings that exist, and the averages of groups that are complete."""
    folders = {name: _folder(target, name, section) for name in _list_tasks(target, section)}
    found = {name: folder.read(Scores) for name, folder in folders.items() if folder.has(Scores)}
    averages = [
        average(group, [found[name] for name in names])
        for group, names in GROUPS.items()
        if all(name in found for name in names)
    ]
    return [*found.values(), *averages]


def is_scored(target: Target, section: EvaluationSection) -> bool:
    """Whether every task is scored under these settings."""
    return all(_folder(target, name, section).has(Scores) for name in _list_tasks(target, section))


def locate_scores(target: Target, task: str, section: EvaluationSection) -> list[ScoreFolder]:
    """Return the folder of a task's scores and samples; of a group's average, those of its tasks."""
    return [_folder(target, name, section) for name in GROUPS.get(task, [task])]


def _expand(section: EvaluationSection) -> list[str]:
    """Groups → tasks, in order, each once; all of them exist and may run."""
    names = list(dict.fromkeys(name for task in section.tasks for name in GROUPS.get(task, [task])))
    running = [name for name in names if name in BENCHMARKS and BENCHMARKS[name].runs_code]
    if running and not section.allow_code_execution:
        raise MiloraError(
            f"{', '.join(running)} runs programs that a model wrote on this machine: in a sandbox, which does not stop "
            "a determined attack",
            "set evaluation.allow_code_execution=true (--allow-code-execution), best in a container without secrets",
        )
    for name in names:
        if name not in BENCHMARKS:
            find_task(name)
    return names


def _list_tasks(target: Target, section: EvaluationSection) -> list[str]:
    names = list(dict.fromkeys(name for task in section.tasks for name in GROUPS.get(task, [task])))
    measures_forgetting = section.forgetting.blocks and target.who != "base"
    return [*names, FORGETTING] if measures_forgetting else names


def _start(target: Target, section: EvaluationSection) -> Backend:
    if section.url:
        return ServerBackend(section.url, target.served)
    return LocalBackend(widen(target.load()), load_tokenizer(target.model), section.batch_size)


def _score(target: Target, name: str, section: EvaluationSection, backend: Backend | None) -> None:
    folder, settings = _folder(target, name, section), _settings(target, name, section)
    if name == FORGETTING:
        if is_main_process():
            metrics, samples = score_forgetting(target, section.forgetting)
            scores = Scores(
                task=name,
                who=target.who,
                count=len(samples),
                primary=CROSS_ENTROPY,
                metrics=metrics,
                settings=settings,
                environment=describe_environment(),
                unit="nats",
            )
            write_scores(folder, scores, samples)
    elif name in BENCHMARKS:
        assert backend is not None
        _score_benchmark(BENCHMARKS[name], target, section, backend)
    elif isinstance(backend, LocalBackend):
        metrics, samples = score_task(backend.harness, name, section.limit)
        if is_main_process():
            scores = Scores(
                task=Path(name).stem,
                who=target.who,
                count=len(samples),
                primary=next(iter(metrics)),
                metrics=metrics,
                settings=settings,
                environment=describe_environment(),
            )
            write_scores(folder, scores, samples)
    else:
        raise MiloraError(f"{name} is a task of lm-eval, which runs here with backend=hf", "leave --backend server out")


def _score_benchmark(benchmark: Benchmark, target: Target, section: EvaluationSection, backend: Backend) -> None:
    folder, settings = _folder(target, benchmark.name, section), _settings(target, benchmark.name, section)
    rows = benchmark.load(section.data_dir or target.data_dir, section.limit)
    template = _template(benchmark, target, section)
    decoding = benchmark.decoding(section.max_new_tokens)
    completed = complete_all(backend, [Request(template.render(row.prompt), decoding) for row in rows], folder)
    if not is_main_process():
        return
    grades = benchmark.grade(completed.texts, rows)
    samples = [
        Sample(row.question, row.answer, text, {grader: found[index] for grader, found in grades.items()})
        for index, (row, text) in enumerate(zip(rows, completed.texts, strict=True))
    ]
    tokens = [backend.count_tokens(text) or 0 for text in completed.texts] if completed.made else []
    speed = sum(tokens) / len(samples) * completed.made / completed.seconds if sum(tokens) else None
    scores = Scores(
        task=benchmark.name,
        who=target.who,
        count=len(samples),
        primary=HEADLINE,
        metrics=measure_grades(samples),
        settings=settings,
        environment=describe_environment(),
        differ=sum(len({grade.score for grade in sample.grades.values()}) > 1 for sample in samples),
        no_answer=sum(sample.grades[HEADLINE].answer is None for sample in samples),
        cost=Cost(completed.seconds, completed.made, speed),
        confinement=describe_confinement() if benchmark.runs_code else None,
    )
    write_scores(folder, scores, samples)


def _template(benchmark: Benchmark, target: Target, section: EvaluationSection) -> Template:
    """The template that the model was trained with, or the benchmark's official prompt."""
    if section.prompt == "official" or target.template is None:
        return benchmark.prompt
    return resolve_template(target.template, lambda: load_tokenizer(target.model))


def _settings(target: Target, name: str, section: EvaluationSection) -> Settings:
    if name == FORGETTING:
        asked = section.forgetting
        text = Path(asked.text)
        return Settings(
            target.digest,
            "1",
            data=hash_local(text) if text.is_file() else None,
            text=f"{asked.text}: {asked.blocks} blocks of {asked.block_length}",
        )
    if name not in BENCHMARKS:
        return Settings(
            target.digest,
            f"lm-eval {version('lm-eval')}",
            data=hash_local(Path(name)) if Path(name).is_file() else None,
            limit=section.limit,
            batch_size=section.batch_size,
            backend=section.backend,
        )
    benchmark = BENCHMARKS[name]
    decoding = benchmark.decoding(section.max_new_tokens)
    return Settings(
        target.digest,
        str(benchmark.version),
        prompt=_template(benchmark, target, section).text,
        limit=section.limit,
        data=_hash_rows(benchmark, section.data_dir or target.data_dir),
        max_new_tokens=decoding.max_new_tokens,
        beams=decoding.beams,
        stops=decoding.stops,
        batch_size=section.batch_size,
        backend=section.backend,
    )


def _hash_rows(benchmark: Benchmark, data_dir: str | None) -> str | None:
    """The digest of the rows' file, None if they are embedded or read from their published place."""
    if data_dir is None or benchmark.name not in NAMED_SETS:
        return None
    return hash_local(find_file(benchmark.name, "test", data_dir))


def _folder(target: Target, name: str, section: EvaluationSection) -> ScoreFolder:
    """Scores under different settings are kept side by side."""
    settings = json.dumps(asdict(_settings(target, name, section)), sort_keys=True)
    digest = hashlib.sha256(settings.encode()).hexdigest()[:8]
    return ScoreFolder(target.folder / target.who / Path(name).stem / digest)
