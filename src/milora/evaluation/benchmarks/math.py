"""MATH's test split: greedy, 2048 new tokens; the official equivalence, and math-verify's."""

from milora.evaluation.benchmarks.benchmark import Benchmark, grade_text
from milora.evaluation.graders.mathematics import corrected_mathematics, last_boxed, official_mathematics
from milora.evaluation.benchmarks.gsm8k import STOPS
from milora.data.sets import Row


def _gold(row: Row) -> str:
    return last_boxed(row["answer"]) or ""


MATH = Benchmark(
    name="math",
    version=1,
    grade=grade_text(official_mathematics, corrected_mathematics, gold=_gold, limited=True),
    official_prompt="mathematics",
    max_new_tokens=2048,
    stops=STOPS,
)
