"""GSM8K's test split: greedy, 1024 new tokens, the number after the last "The answer is:"."""

from milora.evaluation.benchmarks.benchmark import Benchmark, grade_text
from milora.evaluation.graders.numbers import corrected_number, official_number

STOPS = ("Instruction:", "Instruction", "Response:", "Response")

GSM8K = Benchmark(
    name="gsm8k",
    version=2,
    grade=grade_text(official_number, corrected_number),
    official_prompt="mathematics",
    max_new_tokens=1024,
    stops=STOPS,
)
