"""FollowBench: five levels, each with one more constraint; greedy, 2048 new tokens. Each category is a benchmark."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import takewhile

from milora.data.conversation import Conversation
from milora.data.sets import FOLLOW_CATEGORIES
from milora.evaluation.benchmarks.benchmark import Benchmark
from milora.evaluation.judges.follow_bench import HARD, KINDS, SOFT, grade_by_rules, judge_constraints
from milora.evaluation.scores import Metric, Sample, measure, measure_grades

LEVELS = 5
CONSISTENT = "csl"


def summarize(samples: Sequence[Sample], rows: Sequence[Conversation], data_dir: str | None) -> dict[str, Metric]:
    """Hard and soft satisfaction rates, of all levels and of each, and consistent satisfaction levels.

    A level of which nothing could be graded has no rate.
    """
    metrics = measure_grades(samples)
    for grader in (HARD, SOFT):
        by_level = defaultdict(list)
        for sample, row in zip(samples, rows, strict=True):
            score = sample.grades[grader].score
            if score is not None:
                by_level[row.fields["level"]].append(score)
        metrics |= {f"{grader}_{level}": measure(scores) for level, scores in sorted(by_level.items())}
    counts = list(count_consistent_levels(samples, rows))
    return metrics | ({CONSISTENT: measure(counts, "number")} if counts else {})


def count_consistent_levels(samples: Sequence[Sample], rows: Sequence[Conversation]) -> Iterator[float]:
    """For each example with all its levels, yield how many are satisfied from the first on without a gap.

    An example whose gap may be at a level that could not be graded is left out.
    """
    groups: defaultdict[str, dict[int, float | None]] = defaultdict(dict)
    for sample, row in zip(samples, rows, strict=True):
        groups[row.fields["example"]][int(row.fields["level"])] = sample.grades[HARD].score
    for levels in groups.values():
        scores = [levels[level] for level in sorted(levels)]
        satisfied = len(list(takewhile(lambda score: score == 1, scores)))
        if len(scores) == LEVELS and (satisfied == LEVELS or scores[satisfied] is not None):
            yield float(satisfied)


FOLLOW_BENCH = tuple(
    Benchmark(
        name=f"follow_{category}",
        version=1,
        prompt=None,
        grade=None if category in KINDS else grade_by_rules,
        judged=judge_constraints if category in KINDS else None,
        max_new_tokens=2048,
        summarize=summarize,
        primary=HARD,
    )
    for category in FOLLOW_CATEGORIES
)
