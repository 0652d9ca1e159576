"""Small sets of pictures inside PyPI packages, each also blind: what is answered without looking."""

from collections import Counter
from collections.abc import Sequence

from milora.data.conversation import Conversation
from milora.data.packaged import PACKAGED
from milora.evaluation.benchmarks.benchmark import Benchmark
from milora.evaluation.graders.grade import Grade
from milora.evaluation.scores import Metric, Sample, measure, measure_grades

ACCURACY, MAJORITY = "accuracy", "majority answer"


def grade_word(completions: list[str], rows: list[Conversation]) -> dict[str, list[Grade]]:
    """Grade the first word of an answer."""
    words = [(text.split() or [""])[0].strip(".,!").lower() for text in completions]
    return {ACCURACY: [Grade(word or None, float(word == row.answer)) for word, row in zip(words, rows, strict=True)]}


def compare_with_majority(
    samples: Sequence[Sample], rows: Sequence[Conversation], data_dir: str | None
) -> dict[str, Metric]:
    """Return the accuracy, and that of always giving the most frequent answer of these rows."""
    ((most, _),) = Counter(row.answer for row in rows).most_common(1)
    return measure_grades(samples) | {MAJORITY: measure([float(row.answer == most) for row in rows])}


def _make(name: str) -> Benchmark:
    return Benchmark(
        name=name,
        version=1,
        prompt=None,
        grade=grade_word,
        max_new_tokens=4,
        summarize=compare_with_majority,
        primary=ACCURACY,
        has_pictures=True,
    )


PACKAGED_BENCHMARKS = [made for name in PACKAGED for made in (_make(name), _make(name).without_seeing())]
