"""Targets × benchmarks → scores and every sample."""

import sys
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from milora.data.processor import Pictures
from milora.data.templates import ChatTemplate
from milora.evaluation.benchmarks import BENCHMARKS, GROUPS
from milora.evaluation.check import check_tasks, expand
from milora.evaluation.conditions import locate, served_by, settings_of, title_of
from milora.evaluation.forgetting import CROSS_ENTROPY, FORGETTING, score_forgetting
from milora.evaluation.generation.completions import Completed
from milora.evaluation.generation.local import LocalBackend
from milora.evaluation.generation.request import Backend
from milora.evaluation.generation.server import ServerBackend
from milora.evaluation.generation.wide import widen
from milora.evaluation.harness import check_task, score_task
from milora.evaluation.judges.judge import Judge
from milora.evaluation.posing import Posed, answer, pictures_of, pose
from milora.evaluation.sandbox.programs import describe_confinement
from milora.evaluation.scores import (
    Cost,
    Sample,
    Scores,
    average,
    write_scores,
)
from milora.evaluation.target import Target
from milora.method.files import write_bytes
from milora.models.base import context_length
from milora.run.directory import ScoreFolder
from milora.run.environment import describe_environment
from milora.run.launch import is_main_process, wait_for_all
from milora.run.lock import locked
from milora.run.sections import EvaluationSection


def evaluate(target: Target, section: EvaluationSection, *, baseline: bool = False, yes: bool = False) -> list[Scores]:
    """Score a target, and with `baseline` its base before it, on the section's tasks; return all scores.

    What is scored already under the same settings is read. A killed evaluation resumes at the first completion that it
    lacks; under `accelerate launch` the processes share the work, and the scores are the same. `yes` agrees beforehand
    to what a judge costs.

    Raises:
        MiloraError: a task does not exist, its data is not there, or it runs code and that is not allowed.
    """
    targets = [target.base, target] if baseline and target.who != "base" else [target]
    check_tasks(section, yes=yes)
    with locked(target.folder):
        for one in targets:
            _forget_anonymous(one, section)
            missing = [name for name in expand(section) if not _folder(one, name, section).has(Scores)]
            _score_tasks(one, [name for name in missing if name != FORGETTING], section, yes)
            if FORGETTING in missing and is_main_process():
                _score_forgetting(one, section)
    return [scores for one in targets for scores in find_scores(one, section)]


def find_scores(target: Target, section: EvaluationSection) -> list[Scores]:
    """Return the scores of a target under these settings that exist, and the averages of groups that are complete."""
    folders = {name: _folder(target, name, section) for name in expand(section)}
    found = {name: folder.read(Scores) for name, folder in folders.items() if folder.has(Scores)}
    averages = [
        average(group, [found[name] for name in names])
        for group, names in GROUPS.items()
        if all(name in found for name in names)
    ]
    return [*found.values(), *averages]


def is_scored(target: Target, section: EvaluationSection) -> bool:
    """Whether every task is scored under these settings."""
    return all(_folder(target, name, section).has(Scores) for name in expand(section))


def locate_samples(target: Target, task: str, section: EvaluationSection) -> list[ScoreFolder]:
    """Return the folder of a task's scores and samples; of a group's average, those of its tasks."""
    names = GROUPS.get(task) or [name for name in expand(section) if title_of(name) == title_of(task)]
    return [_folder(target, name, section) for name in names]


def _folder(target: Target, name: str, section: EvaluationSection) -> ScoreFolder:
    return locate(target, name, settings_of(target, name, section))


def _forget_anonymous(target: Target, section: EvaluationSection) -> None:
    """Delete finished scores of a server that does not say what it serves: it may serve another model by now.

    What a killed evaluation left is not finished, and resumes.
    """
    if not section.url:
        return
    for name in expand(section):
        served = served_by(target, name, section)
        if served is None or served.identity is not None:
            continue
        folder = _folder(target, name, section)
        if folder.has(Scores) and is_main_process():
            print(
                f"{name} is scored again: the server at {section.url} does not say what {target.served} is, so that "
                "earlier completions may be another model's",
                file=sys.stderr,
            )
            folder.forget()
    wait_for_all()


def _score_tasks(target: Target, names: Sequence[str], section: EvaluationSection, yes: bool) -> None:
    """Prompts that do not fit are found before the model is loaded: here, so that its memory is free at the end."""
    if not names:
        return
    tokenizer = target.load_tokenizer()
    pictures = pictures_of(target.model)
    posed = [pose(BENCHMARKS[name], target, section, tokenizer, pictures) for name in names if name in BENCHMARKS]
    others = [name for name in names if name not in BENCHMARKS]
    for name in others:
        check_task(name, section, tokenizer, context_length(target.model, tokenizer))
    backend = _start(target, section, tokenizer, pictures)
    for one in posed:
        _score_benchmark(one, target, section, backend, tokenizer, yes)
    if isinstance(backend, LocalBackend):
        backend.end_turns_of(ChatTemplate(tokenizer) if section.apply_chat_template else None)
        for name in others:
            _score_of_harness(name, target, section, backend)


def _start(
    target: Target, section: EvaluationSection, tokenizer: PreTrainedTokenizerBase, pictures: Pictures | None
) -> Backend:
    if section.url:
        return ServerBackend(section.url, target.served, tokenizer)
    return LocalBackend(widen(target.load()), tokenizer, section.batch_size, pictures)


def _score_forgetting(target: Target, section: EvaluationSection) -> None:
    metrics, samples = score_forgetting(target, section.forgetting)
    settings = settings_of(target, FORGETTING, section)
    scores = Scores(
        task=FORGETTING,
        who=target.who,
        count=len(samples),
        primary=CROSS_ENTROPY,
        metrics=metrics,
        settings=settings,
        environment=describe_environment(),
        unit="nats",
    )
    write_scores(locate(target, FORGETTING, settings), scores, samples)


def _score_of_harness(name: str, target: Target, section: EvaluationSection, backend: LocalBackend) -> None:
    found = score_task(backend.harness, name, section)
    if found is None or not is_main_process():
        return
    settings = settings_of(target, name, section)
    scores = Scores(
        task=title_of(name),
        who=target.who,
        count=len(found.samples),
        primary=found.primary,
        metrics=found.metrics,
        settings=settings,
        environment=describe_environment(),
        unit=found.unit,
        unfit=found.unfit,
    )
    write_scores(locate(target, name, settings), scores, found.samples)


def _score_benchmark(
    posed: Posed,
    target: Target,
    section: EvaluationSection,
    backend: Backend,
    tokenizer: PreTrainedTokenizerBase,
    yes: bool,
) -> None:
    benchmark = posed.benchmark
    settings = settings_of(target, benchmark.name, section)
    folder = locate(target, benchmark.name, settings)
    answered = answer(posed, target, section, tokenizer, backend, folder)
    if not is_main_process():
        return
    rows, completed = answered.rows, answered.completed
    texts = [completion.text for completion in completed.completions]
    data_dir = section.data_dir or target.data_dir
    if benchmark.judged is not None:
        grades = benchmark.judged(texts, rows, Judge(section.judge, folder, target.served, data_dir, yes))
    else:
        assert benchmark.grade is not None
        grades = benchmark.grade(texts, rows)
    samples = [
        Sample(row.question, row.answer, text, {grader: found[index] for grader, found in grades.items()}, row.images)
        for index, (row, text) in enumerate(zip(rows, texts, strict=True))
    ]
    headline = grades.get(benchmark.primary) or next(iter(grades.values()))
    scores = Scores(
        task=benchmark.name,
        who=target.who,
        count=len(samples),
        primary=benchmark.primary,
        metrics=benchmark.summarize(samples, rows, data_dir),
        settings=settings,
        environment=describe_environment(),
        unit=benchmark.unit,
        differ=sum(len({grade.score for grade in sample.grades.values()} - {None}) > 1 for sample in samples)
        if benchmark.grade
        else None,
        no_answer=sum(grade.answer is None for grade in headline),
        excluded=sum(grade.score is None for grade in headline) if benchmark.judged else None,
        flagged=sum(grade.flagged for grade in headline) if benchmark.judged else None,
        truncated=sum(not completion.ended for completion in completed.completions) - answered.unfit,
        unfit=answered.unfit,
        cost=_measure_cost(completed, tokenizer),
        confinement=describe_confinement() if benchmark.runs_code else None,
    )
    if benchmark.upload is not None:
        file = folder.upload(benchmark.upload_ending)
        write_bytes(file, benchmark.upload(samples, rows, data_dir))
        print(f"{benchmark.name}: {file} is what its server takes", file=sys.stderr)
    write_scores(folder, scores, samples)


def _measure_cost(completed: Completed, tokenizer: PreTrainedTokenizerBase) -> Cost:
    """The tokens of what this process made are taken to be as many as those of any completion."""
    texts = [completion.text for completion in completed.completions]
    tokens = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    speed = tokens / len(texts) * completed.made / completed.seconds if completed.made and tokens else None
    return Cost(completed.seconds, completed.made, speed)
