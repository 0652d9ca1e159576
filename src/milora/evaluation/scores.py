"""The scores of a model on a task, and every sample behind them: the one record that all of evaluation fills."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Literal

from pydantic_core import to_jsonable_python

from milora.evaluation.graders.grade import Grade
from milora.evaluation.intervals import Ends, interval_of, interval_of_average, wilson
from milora.method.errors import MiloraError
from milora.method.files import format_json, write_text
from milora.run.directory import ScoreFolder, adapter_of
from milora.run.environment import Environment

Unit = Literal["share", "nats", "number"]


@dataclass(frozen=True, slots=True)
class Metric:
    """A mean over samples, its standard error, and its 95 % interval for other samples; None if it has none.

    `unit` is there if it is not that of its task.
    """

    value: float
    standard_error: float | None
    interval: Ends | None = None
    unit: Unit | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """What decides a score.

    `model` is the digest of what was scored (base, dtype, quantization, adapter), `version` that of the task: of its
    prompt, decoding and grading. `data` is the digest of local data files. `server` is what a server says of itself.
    `fewshot` counts worked examples in a prompt of lm-eval, None: as many as the task has. `judge` is the model that
    graded, where it is, and how it was asked.
    """

    model: str
    version: str
    prompt: str | None = None
    limit: int | None = None
    data: str | None = None
    max_new_tokens: int | None = None
    beams: int = 1
    stops: tuple[str, ...] = ()
    batch_size: int | Literal["auto"] = "auto"
    backend: str = "hf"
    server: str | None = None
    fewshot: int | None = None
    text: str | None = None
    judge: str | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds that this process took, how many samples it made, and tokens per second if they were counted."""

    seconds: float
    made: int
    tokens_per_second: float | None


@dataclass(frozen=True, slots=True)
class Scores:
    """One task's scores: metrics by name, of which `primary` is the headline.

    `who` is what was scored: base, trained, or checkpoint-N. `differ` counts samples on which graders disagree,
    `no_answer` those in which the primary grader found none, `truncated` completions that ended at the limit of new
    tokens, and `unfit` prompts that are longer than the model's context: they are counted as wrong, and by lm-eval cut
    at their start. `excluded` counts samples that the primary grader could not judge, which are in no mean, and
    `flagged` completions that imitate the judge's prompt. `confinement` names what held programs that a model wrote.
    """

    task: str
    who: str
    count: int
    primary: str
    metrics: dict[str, Metric]
    settings: Settings
    environment: Environment
    unit: Unit = "share"
    differ: int | None = None
    no_answer: int | None = None
    truncated: int | None = None
    unfit: int | None = None
    excluded: int | None = None
    flagged: int | None = None
    cost: Cost | None = None
    confinement: str | None = None

    @property
    def headline(self) -> Metric:
        return self.metrics[self.primary]


@dataclass(frozen=True, slots=True)
class Sample:
    """One item: what was asked, with the paths of its pictures, and answered, and a grade from each grader."""

    question: str
    gold: str
    completion: str
    grades: dict[str, Grade] = field(default_factory=dict)
    images: tuple[str, ...] = ()


def measure(values: Sequence[float], unit: Unit | None = None) -> Metric:
    """Return the mean of samples, s/√n being its standard error; one sample has none."""
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return Metric(fmean(values), error, interval_of(values), unit)


def measure_grades(samples: Sequence[Sample]) -> dict[str, Metric]:
    """Return the mean of every grader's scores; what it excluded does not count."""
    return {name: measure(scores_of(samples, name)) for name in samples[0].grades}


def measure_ratio(pairs: Sequence[tuple[float, float]]) -> Metric:
    """Return R = Σx/Σn over samples that each have x of n, where 0 ≤ x ≤ n.

    The parts of a sample are not independent: s² = k/(k − 1) Σ(x − Rn)²/(Σn)² over k samples, and Wilson's interval is
    that of R(1 − R)/s² independent ones.
    """
    count, samples = sum(n for _, n in pairs), len(pairs)
    share = sum(x for x, _ in pairs) / count
    if samples == 1:
        return Metric(share, None)
    squares = sum((x - share * n) ** 2 for x, n in pairs)
    error = (samples / (samples - 1) * squares) ** 0.5 / count
    return Metric(share, error, wilson(share, share * (1 - share) / error**2 if error else samples))


def scores_of(samples: Sequence[Sample], grader: str) -> list[float]:
    """Return a grader's scores of the samples that it did not exclude.

    Raises:
        MiloraError: it excluded all.
    """
    grades = [sample.grades[grader] for sample in samples]
    scores = [grade.score for grade in grades if grade.score is not None]
    if not scores:
        raise MiloraError(
            f"none of {len(grades)} samples could be judged ({grades[0].reason}): there is no {grader} to report",
            "score more rows (evaluation.limit), or use another judge (evaluation.judge)",
        )
    return scores


def average_metrics(metrics: Sequence[Metric]) -> Metric:
    """Return the unweighted mean; errors of independent metrics add in squares."""
    errors = [metric.standard_error for metric in metrics]
    known = [error for error in errors if error is not None]
    error = sum(error**2 for error in known) ** 0.5 / len(errors) if len(known) == len(errors) else None
    values, ends = [metric.value for metric in metrics], [metric.interval for metric in metrics if metric.interval]
    interval = interval_of_average(values, ends) if len(ends) == len(values) else None
    return Metric(fmean(values), error, interval, metrics[0].unit)


def average(name: str, parts: Sequence[Scores]) -> Scores:
    """Return the unweighted mean over tasks, as in the paper's tables 1 and 4.

    The headline is the mean of their headlines, named as theirs, or `average` if their names differ.
    """
    first = parts[0]
    primary = first.primary if all(part.primary == first.primary for part in parts) else "average"
    shared = [metric for metric in first.metrics if all(metric in part.metrics for part in parts)]
    metrics = {primary: average_metrics([part.headline for part in parts])}
    return Scores(
        task=name,
        who=first.who,
        count=sum(part.count for part in parts),
        primary=primary,
        metrics=metrics | {metric: average_metrics([part.metrics[metric] for part in parts]) for metric in shared},
        settings=first.settings,
        environment=first.environment,
        differ=sum(part.differ or 0 for part in parts),
        no_answer=sum(part.no_answer or 0 for part in parts),
        truncated=sum(part.truncated or 0 for part in parts),
        unfit=sum(part.unfit or 0 for part in parts),
        excluded=sum(part.excluded or 0 for part in parts),
        flagged=sum(part.flagged or 0 for part in parts),
    )


def write_scores(folder: ScoreFolder, scores: Scores, samples: Sequence[Sample]) -> None:
    """Write the samples, and then the scores, which say that all is there."""
    write_samples(folder, samples)
    folder.write(scores)


def write_samples(folder: ScoreFolder, samples: Sequence[Sample]) -> None:
    folder.path.mkdir(parents=True, exist_ok=True)
    lines = (format_json(to_jsonable_python(sample)) for sample in samples)
    write_text(folder.samples, "".join(f"{line}\n" for line in lines))


def read_samples(folder: ScoreFolder) -> list[Sample]:
    # Not splitlines: JSON strings contain U+2028 and its like as they are.
    lines = folder.samples.read_text(encoding="utf-8").split("\n")
    return [adapter_of(Sample).validate_json(line) for line in lines if line]


def format_table(found: Iterable[Scores]) -> str:
    """A plain table: every metric and its 95 % interval, in percent or nats, for each who; the headline first.

    Below them, if there are any, the numbers of completions that ended at the limit of new tokens, of prompts that were
    too long, of samples that could not be judged, and of completions that imitate the judge's prompt.
    """
    rows: dict[str, dict[str, Scores]] = {}
    for scores in found:
        rows.setdefault(scores.task, {})[scores.who] = scores
    whos = sorted({who for row in rows.values() for who in row}, key=lambda who: (who != "base", who))
    lines = [f"{'task':<16}{'grading':<16}{'n':>6}" + "".join(f"{who:>24}" for who in whos)]
    for task, row in rows.items():
        first = next(iter(row.values()))
        for metric in sorted(first.metrics, key=lambda metric: (metric != first.primary, metric)):
            head = f"{task:<16}{metric:<16}{first.count:>6}" if metric == first.primary else f"{'':<16}{metric:<22}"
            lines.append(head + "".join(f"{_cell(row.get(who), metric):>24}" for who in whos))
        for count in ("truncated", "unfit", "excluded", "flagged"):
            counts = {who: getattr(scores, count) for who, scores in row.items()}
            if any(counts.values()):
                lines.append(f"{'':<16}{count:<22}" + "".join(f"{counts.get(who) or 0:>24}" for who in whos))
    return "\n".join([*lines, INTERVALS])


INTERVALS = "In parentheses: the 95 % interval for other samples, Wilson's where each grade is right or wrong."


def _cell(scores: Scores | None, metric: str) -> str:
    """Empty for what was not scored, or what it has no such metric of: a level whose answers were all excluded."""
    return "–" if scores is None or metric not in scores.metrics else format_metric(scores.metrics[metric], scores.unit)


def format_metric(metric: Metric, unit: Unit) -> str:
    """`37.5 % (27.7 … 48.5)` for a share, three digits for anything else."""
    percent = (metric.unit or unit) == "share"
    return format_interval(metric.value, metric.interval, *((100, 1, " %") if percent else (1, 3, "")))


def format_interval(value: float, ends: Ends | None, factor: float, digits: int, sign: str = "") -> str:
    """`37.5 % (27.7 … 48.5)`: every number with an interval, in terminals, tables, and pages."""
    between = "" if ends is None else f" ({' … '.join(f'{factor * end:.{digits}f}' for end in ends)})"
    return f"{factor * value:.{digits}f}{sign}{between}"
