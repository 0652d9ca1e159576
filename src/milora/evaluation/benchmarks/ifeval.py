"""IFEval: 541 prompts with instructions that a program can check; greedy, 1280 new tokens, as in lm-eval."""

from collections.abc import Sequence

from milora.data.conversation import Conversation
from milora.evaluation.benchmarks.benchmark import Benchmark
from milora.evaluation.graders.instructions import (
    LOOSE,
    STRICT,
    check_instructions_can_be_read,
    grade_instructions,
)
from milora.evaluation.scores import Metric, Sample, measure_grades, measure_ratio


def measure_instructions(samples: Sequence[Sample], grader: str) -> Metric:
    """Return the share of all instructions that are followed."""
    parts = [sample.grades[grader].parts for sample in samples]
    return measure_ratio([(sum(part), len(part)) for part in parts])


def summarize(samples: Sequence[Sample], rows: Sequence[Conversation], data_dir: str | None) -> dict[str, Metric]:
    """The four published accuracies."""
    return measure_grades(samples) | {
        "instruction_strict": measure_instructions(samples, STRICT),
        "instruction_loose": measure_instructions(samples, LOOSE),
    }


IFEVAL = Benchmark(
    name="ifeval",
    version=1,
    prompt=None,
    grade=grade_instructions,
    max_new_tokens=1280,
    summarize=summarize,
    primary=STRICT,
    check=lambda _: check_instructions_can_be_read(),
)
