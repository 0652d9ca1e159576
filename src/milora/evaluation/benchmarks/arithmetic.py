"""The embedded word problems, with held-out wording and numbers, graded as GSM8K."""

from milora.data.templates import TEMPLATES
from milora.evaluation.benchmarks.benchmark import Benchmark, grade_text
from milora.evaluation.graders.numbers import corrected_number, official_number

ARITHMETIC = Benchmark(
    name="arithmetic",
    version=4,
    prompt=TEMPLATES["plain"],
    grade=grade_text(official_number, corrected_number),
    max_new_tokens=40,
)
