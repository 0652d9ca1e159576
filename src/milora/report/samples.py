"""Samples to read: what was asked, the right answer, and what each model answered, side by side."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from milora.evaluation.scores import Sample, Scores, read_samples
from milora.report.thumbnails import Album
from milora.run.directory import ScoreFolder

MOST = 15_000  # answers of a page


@dataclass(frozen=True, slots=True)
class Answer:
    """One model's answer, and whether it is right by the headline's grade: None if that says neither."""

    who: str
    text: str
    is_right: bool | None

    @property
    def verdict(self) -> str:
        return "-" if self.is_right is None else "1" if self.is_right else "0"


@dataclass(frozen=True, slots=True)
class Reading:
    """One item, as every model was asked it; `images` are the files of its pictures."""

    task: str
    number: int
    question: str
    gold: str
    answers: list[Answer]
    images: tuple[str, ...] = ()

    @property
    def verdicts(self) -> str:
        """One character for each answer, which the page's filter reads."""
        return "".join(answer.verdict for answer in self.answers)


@dataclass(frozen=True, slots=True)
class Readings:
    """The samples of a page, how many there are in all, and their pictures as data URIs, by file."""

    whos: list[str]
    shown: list[Reading]
    count: int
    pictures: dict[str, str]

    @property
    def has_verdicts(self) -> bool:
        return any(reading.verdicts.strip("-") for reading in self.shown)

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(reading.task for reading in self.shown))


def read_task(task: str, folders: Mapping[str, ScoreFolder]) -> list[Reading]:
    """Return a task's items with the answers of each who; without those who were asked other items than the first."""
    asked: list[str] | None = None
    found: list[tuple[str, list[Sample], Scores | None]] = []
    for who, folder in folders.items():
        samples = read_samples(folder)
        questions = [sample.question for sample in samples]
        asked = asked or questions
        if questions == asked:
            found.append((who, samples, folder.read(Scores) if folder.has(Scores) else None))
    columns = [
        [Answer(who, one.completion, _is_right(one, scores)) for one in samples] for who, samples, scores in found
    ]
    first = found[0][1] if found else []
    return [
        Reading(task, number, sample.question, sample.gold, list(answers), sample.images)
        for number, (sample, *answers) in enumerate(zip(first, *columns, strict=True), 1)
    ]


def collect(tasks: Sequence[Sequence[Reading]]) -> Readings:
    """Return the samples of a page: of each task the first ones, so that all tasks have a share of `MOST`."""
    whos = max((len(reading.answers) for task in tasks for reading in task[:1]), default=1)
    share = MOST // (max(1, len(tasks)) * whos)
    shown = [reading for task in tasks for reading in task[:share]]
    names = list(dict.fromkeys(answer.who for reading in shown for answer in reading.answers))
    album = Album()
    for reading in shown:
        album.add(reading.images)
    return Readings(names, shown, sum(map(len, tasks)), album.shown)


def count_pairs(readings: Sequence[Reading]) -> list[list[str]]:
    """Return for every two whos how many items both answer right, only the first, only the second, and neither."""
    whos = [answer.who for answer in readings[0].answers]
    rows = []
    for one, other in combinations(range(len(whos)), 2):
        pairs = Counter(reading.verdicts[one] + reading.verdicts[other] for reading in readings)
        if any("-" not in pair for pair in pairs):
            counts = [f"{pairs[pair]:,}" for pair in ("11", "10", "01", "00")]
            rows.append([f"{whos[one]}, {whos[other]}", *counts])
    return rows


def _is_right(sample: Sample, scores: Scores | None) -> bool | None:
    """None without scores, for a task whose score is not a grade of a sample, or a grade that is not right or wrong."""
    if scores is None:
        return None
    grade = sample.grades.get(scores.primary)
    return None if grade is None or scores.unit != "share" or grade.score not in (0, 1) else grade.score == 1
