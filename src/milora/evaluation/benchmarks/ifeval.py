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
from milora.evaluation.intervals import wilson
from milora.evaluation.scores import Metric, Sample, measure_grades


def measure_instructions(samples: Sequence[Sample], grader: str) -> Metric:
    """Return the share of all instructions that are followed, R = Σx/Σn over prompts with x of n followed.

    The instructions of a prompt are not independent: s² = k/(k − 1) Σ(x − Rn)²/(Σn)² over k prompts, and Wilson's
    interval is that of R(1 − R)/s² independent ones.
    """
    parts = [sample.grades[grader].parts for sample in samples]
    count, prompts = sum(map(len, parts)), len(parts)
    share = sum(map(sum, parts)) / count
    if prompts == 1:
        return Metric(share, None)
    squares = sum((sum(one) - share * len(one)) ** 2 for one in parts)
    error = (prompts / (prompts - 1) * squares) ** 0.5 / count
    return Metric(share, error, wilson(share, share * (1 - share) / error**2 if error else prompts))


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
