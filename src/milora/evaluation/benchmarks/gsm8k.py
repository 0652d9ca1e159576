"""GSM8K's test split: greedy, 1024 new tokens, the number after the last "The answer is:"."""

from milora.data.templates import TextTemplate
from milora.evaluation.benchmarks.benchmark import Benchmark, grade_text
from milora.evaluation.graders.numbers import corrected_number, official_number

# The authors' inference/gsm8k_inference.py and MATH_inference.py.
PROMPT = TextTemplate(
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{question}\n\n### Response: Let's think step by step."
)
STOPS = ("Instruction:", "Instruction", "Response:", "Response")

GSM8K = Benchmark(
    name="gsm8k",
    version=4,
    prompt=PROMPT,
    grade=grade_text(official_number, corrected_number),
    max_new_tokens=1024,
    stops=STOPS,
)
