"""The embedded word problems, held-out wording and numbers, graded as GSM8K."""

from milora.evaluation.benchmarks.benchmark import Benchmark, grade_text
from milora.evaluation.graders.numbers import corrected_number, official_number

ARITHMETIC = Benchmark(
    name="arithmetic",
    version=2,
    grade=grade_text(official_number, corrected_number),
    official_prompt="arithmetic",
    max_new_tokens=40,
)
