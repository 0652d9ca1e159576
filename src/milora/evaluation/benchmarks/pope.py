"""POPE: is an object in the picture? Greedy, 128 new tokens. The headline is the mean F1 of its three splits."""

from collections.abc import Sequence

from milora.data.conversation import Conversation
from milora.data.picture_rows import POPE_SPLITS
from milora.evaluation.benchmarks.benchmark import Benchmark
from milora.evaluation.benchmarks.vqav2 import NEW_TOKENS
from milora.evaluation.graders.grade import Grade
from milora.evaluation.graders.vqa import ACCURACY
from milora.evaluation.scores import Metric, Sample, average_metrics, measure, measure_grades, measure_ratio
from milora.method.errors import MiloraError

F1 = "f1"
NO, YES = ("No", "no", "not"), ("Yes", "yes")


def grade(completions: list[str], rows: list[Conversation]) -> dict[str, list[Grade]]:
    """Grade as POPE reads an answer: "no" if No, no or not is a word of its first sentence, and otherwise "yes".

    No answer is shown for what has neither a yes nor a no in it, though it counts as "yes".
    """
    grades = []
    for completion, row in zip(completions, rows, strict=True):
        words = completion.strip().split(".")[0].replace(",", "").split(" ")
        says_no = any(word in words for word in NO)
        shown = "no" if says_no else "yes" if any(word in words for word in YES) else None
        grades.append(Grade(shown, float(says_no == (row.answer == "no"))))
    return {ACCURACY: grades}


def summarize(samples: Sequence[Sample], rows: Sequence[Conversation], data_dir: str | None) -> dict[str, Metric]:
    """The mean F1, the accuracy over all questions, and of each split accuracy, F1, precision, recall and yes-rate.

    A ratio whose denominator is 0 is left out: a model that never says yes has no precision.
    """
    by_split: dict[str, dict[str, Metric]] = {}
    for split in POPE_SPLITS:
        chosen = [sample for sample, row in zip(samples, rows, strict=True) if row.fields["split"] == split]
        if chosen:
            by_split[split] = _measure(chosen)
    found = [metrics[F1] for metrics in by_split.values() if F1 in metrics]
    if not found:
        raise MiloraError(
            f"no answer and no gold of {len(samples)} questions is yes: there is no F1", "set a larger evaluation.limit"
        )
    each = {f"{name}_{split}": metric for split, metrics in by_split.items() for name, metric in metrics.items()}
    return {F1: average_metrics(found)} | measure_grades(samples) | each


def _measure(samples: Sequence[Sample]) -> dict[str, Metric]:
    right = [sample.grades[ACCURACY].score == 1 for sample in samples]
    gold = [sample.gold == "yes" for sample in samples]
    said = [is_right == is_yes for is_right, is_yes in zip(right, gold, strict=True)]
    counts = [(float(a and b), float(a), float(b)) for a, b in zip(said, gold, strict=True)]  # true yes, said, gold
    ratios = {
        F1: [(2 * both, one + other) for both, one, other in counts],
        "precision": [(both, one) for both, one, _ in counts],
        "recall": [(both, other) for both, _, other in counts],
    }
    known = {name: measure_ratio(pairs) for name, pairs in ratios.items() if any(count for _, count in pairs)}
    return {ACCURACY: measure(list(map(float, right)))} | known | {"yes": measure(list(map(float, said)))}


POPE = Benchmark(
    name="pope",
    version=1,
    prompt=None,
    has_pictures=True,
    grade=grade,
    max_new_tokens=NEW_TOKENS,
    summarize=summarize,
    primary=F1,
)
