"""Targets × benchmarks → scores and every sample."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

from milora.data.rows import find_file
from milora.data.sets import NAMED_SETS
from milora.data.templates import CHAT, ChatTemplate, Template, describe_template, resolve_template
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
from milora.method.options import TemplateName
from milora.models.base import load_tokenizer
from milora.run.directory import ScoreFolder, locate_scores, locked
from milora.run.environment import describe_environment
from milora.run.identity import hash_local
from milora.run.launch import is_main_process
from milora.run.recipe import EvaluationSection, Recipe


def check_evaluation(recipe: Recipe) -> None:
    """Raise unless the recipe's tasks and their data exist: before training is paid for, not after."""
    section = recipe.evaluation
    _check_tasks(section)
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
    _check_tasks(section)
    with locked(target.folder):
        for one in targets:
            missing = [name for name in _list_tasks(one, section) if not _folder(one, name, section).has(Scores)]
            _score_tasks(one, [name for name in missing if name != FORGETTING], section)
            if FORGETTING in missing and is_main_process():
                _score_forgetting(one, section)
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


def locate_samples(target: Target, task: str, section: EvaluationSection) -> list[ScoreFolder]:
    """Return the folder of a task's scores and samples; of a group's average, those of its tasks."""
    names = GROUPS.get(task) or [name for name in _list_tasks(target, section) if _title(name) == _title(task)]
    return [_folder(target, name, section) for name in names]


def _check_tasks(section: EvaluationSection) -> None:
    """Raise unless all tasks exist and may run."""
    names = _expand(section)
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


def _expand(section: EvaluationSection) -> list[str]:
    """Groups → tasks, in order, each once."""
    return list(dict.fromkeys(name for task in section.tasks for name in GROUPS.get(task, [task])))


def _list_tasks(target: Target, section: EvaluationSection) -> list[str]:
    measures_forgetting = section.forgetting.blocks and target.who != "base"
    return [*_expand(section), FORGETTING] if measures_forgetting else _expand(section)


def _score_tasks(target: Target, names: Sequence[str], section: EvaluationSection) -> None:
    """The model is loaded here, so that its memory is free again at the end."""
    if not names:
        return
    backend = _start(target, section)
    for name in names:
        if name in BENCHMARKS:
            _score_benchmark(BENCHMARKS[name], target, section, backend)
        elif isinstance(backend, LocalBackend):
            _score_of_harness(name, target, section, backend)
        else:
            raise MiloraError(
                f"{name} is a task of lm-eval, which runs here with backend=hf", "leave --backend server out"
            )


def _start(target: Target, section: EvaluationSection) -> Backend:
    if section.url:
        return ServerBackend(section.url, target.served)
    tokenizer = load_tokenizer(target.model)
    chat = ChatTemplate(tokenizer) if _template_name(target, section) == CHAT else None
    return LocalBackend(widen(target.load()), tokenizer, section.batch_size, chat)


def _score_forgetting(target: Target, section: EvaluationSection) -> None:
    metrics, samples = score_forgetting(target, section.forgetting)
    scores = Scores(
        task=FORGETTING,
        who=target.who,
        count=len(samples),
        primary=CROSS_ENTROPY,
        metrics=metrics,
        settings=_settings(target, FORGETTING, section),
        environment=describe_environment(),
        unit="nats",
    )
    write_scores(_folder(target, FORGETTING, section), scores, samples)


def _score_of_harness(name: str, target: Target, section: EvaluationSection, backend: LocalBackend) -> None:
    found = score_task(backend.harness, name, section.limit)
    if is_main_process():
        scores = Scores(
            task=_title(name),
            who=target.who,
            count=len(found.samples),
            primary=found.primary,
            metrics=found.metrics,
            settings=_settings(target, name, section),
            environment=describe_environment(),
            unit=found.unit,
        )
        write_scores(_folder(target, name, section), scores, found.samples)


def _score_benchmark(benchmark: Benchmark, target: Target, section: EvaluationSection, backend: Backend) -> None:
    folder, settings = _folder(target, benchmark.name, section), _settings(target, benchmark.name, section)
    rows = benchmark.load(section.data_dir or target.data_dir, section.limit)
    template = _template(benchmark, target, section)
    decoding = benchmark.decoding(section.max_new_tokens)
    decoding = replace(decoding, stops=(*decoding.stops, *template.stops))
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
    name = _template_name(target, section)
    return resolve_template(name, lambda: load_tokenizer(target.model)) if name else benchmark.prompt


def _template_name(target: Target, section: EvaluationSection) -> TemplateName | None:
    """The template that the model was trained with; None for the benchmark's official prompt."""
    return target.template if section.prompt == "trained" else None


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
            f"lm-eval {version('lm-eval')}: {name}",
            data=hash_local(Path(name)) if Path(name).is_file() else None,
            limit=section.limit,
            batch_size=section.batch_size,
            backend=section.backend,
        )
    benchmark, template = BENCHMARKS[name], _template_name(target, section)
    decoding = benchmark.decoding(section.max_new_tokens)
    return Settings(
        target.digest,
        str(benchmark.version),
        prompt=benchmark.prompt.text if template is None else describe_template(template),
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
    settings = json.dumps(asdict(_settings(target, name, section)), sort_keys=True)
    digest = hashlib.sha256(settings.encode()).hexdigest()[:8]
    return locate_scores(target.folder, target.who, _title(name), digest)


def _title(name: str) -> str:
    """The name of a task, or that of the file which defines it."""
    return Path(name).stem if name.endswith((".yaml", ".yml")) else name
