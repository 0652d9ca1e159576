"""MATH's test split: greedy, 2048 new tokens; the official equivalence, and math-verify's."""

from milora.evaluation.benchmarks.benchmark import Benchmark, grade_text
from milora.evaluation.benchmarks.gsm8k import PROMPT, STOPS
from milora.evaluation.graders.mathematics import corrected_mathematics, last_boxed, official_mathematics

MATH = Benchmark(
    name="math",
    version=2,
    prompt=PROMPT,
    grade=grade_text(
        official_mathematics, corrected_mathematics, gold=lambda answer: last_boxed(answer) or "", limited=True
    ),
    max_new_tokens=2048,
    stops=STOPS,
)
