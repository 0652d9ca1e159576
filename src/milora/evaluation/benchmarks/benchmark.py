"""A benchmark: its rows, its official prompt, its decoding, and its graders."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

from milora.data.conversation import Conversation
from milora.data.rows import load_rows
from milora.data.templates import TextTemplate
from milora.evaluation.generation.request import Decoding
from milora.evaluation.graders.grade import Grade, grade_within
from milora.evaluation.graders.written import ANSWERED, grade_written
from milora.evaluation.judges.judge import Judge
from milora.evaluation.scores import Metric, Sample, Unit, measure_grades

Grader = Callable[[str, str], Grade]
Grades = dict[str, list[Grade]]  # by grader, one for each completion
Summarize = Callable[[Sequence[Sample], Sequence[Conversation], str | None], dict[str, Metric]]
Upload = Callable[[Sequence[Sample], Sequence[Conversation], str | None], bytes]
BLIND = "_blind"  # ends the name of a benchmark without its pictures
HEADLINE = "corrected"  # the grader that never counts a wrong answer right; beside it, the paper's `official`
GRADING_SECONDS = 10.0  # for graders that compute: per completion


def average_grades(samples: Sequence[Sample], rows: Sequence[Conversation], data_dir: str | None) -> dict[str, Metric]:
    """Each grader's mean: the summary of most benchmarks."""
    return measure_grades(samples)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One benchmark.

    The rows are the test split of the data set of the same name, and may show pictures if it `has_pictures`: those of a
    `blind` benchmark are gray. `grade` takes completions and their rows; `judged` is
    there instead where another model grades. `prompt` is the official one, None: the model's own chat template, or the
    question alone. `follow_up` makes a second turn of a row and its first answer. `check` takes a data_dir and raises
    unless what grading needs can be read. `version` changes whenever prompt, decoding, or grading do.

    `summarize` makes metrics, of which `primary` is the headline, from samples and their rows; the files that it and
    the grading read beside the rows are `files` of `data_dir`. `upload` makes what a benchmark's server takes, a file
    that ends in `upload_ending`.
    """

    name: str
    version: int
    prompt: TextTemplate | None
    max_new_tokens: int
    grade: Callable[[list[str], list[Conversation]], Grades] | None = None
    judged: Callable[[list[str], list[Conversation], Judge], Grades] | None = None
    summarize: Summarize = average_grades
    primary: str = HEADLINE
    unit: Unit = "share"
    files: tuple[str, ...] = ()
    follow_up: Callable[[Conversation, str], Conversation] | None = None
    check: Callable[[str | None], object] | None = None
    stops: tuple[str, ...] = ()
    beams: int = 1
    runs_code: bool = False
    upload: Upload | None = None
    upload_ending: str = ".json"
    has_pictures: bool = False
    blind: bool = False

    @property
    def set_name(self) -> str:
        return self.name.removesuffix(BLIND) if self.blind else self.name

    def without_seeing(self) -> Self:
        """Return the benchmark that shows a gray picture of the same size in the place of each."""
        return replace(self, name=self.name + BLIND, blind=True, upload=None)

    def at_server(self, upload: Upload) -> Self:
        """Return the benchmark of the test split, whose answers a server has: here, whether a question is answered."""
        return replace(
            self,
            name=f"{self.name}_test",
            grade=grade_written,
            summarize=average_grades,
            primary=ANSWERED,
            upload=upload,
        )

    def load(self, data_dir: str | None, limit: int | None = None) -> list[Conversation]:
        """Return the rows, once it is known that they can be graded."""
        if self.check is not None:
            self.check(data_dir)
        return load_rows(self.set_name, "test", data_dir)[:limit]

    def decoding(self, max_new_tokens: int | None) -> Decoding:
        """Greedy or beam decoding, with fewer new tokens than the protocol's if that is asked for."""
        return Decoding(max_new_tokens or self.max_new_tokens, self.stops, self.beams)


def grade_text(
    official: Grader,
    corrected: Grader,
    *,
    gold: Callable[[str], str] = lambda answer: answer,
    limited: bool = False,
) -> Callable[[list[str], list[Conversation]], Grades]:
    """Grade by comparing a completion with the gold answer; `limited` runs graders in processes with a time limit."""

    def grade(completions: list[str], rows: list[Conversation]) -> Grades:
        pairs = [(completion, gold(row.answer)) for completion, row in zip(completions, rows, strict=True)]

        def apply(grader: Grader) -> list[Grade]:
            return grade_within(grader, pairs, GRADING_SECONDS) if limited else [grader(*pair) for pair in pairs]

        return {HEADLINE: apply(corrected), "official": apply(official)}

    return grade
