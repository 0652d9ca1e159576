"""GSM8K's test split: greedy, 1024 new tokens, exact rational equality with the number after "The answer is:"."""

from milora.evaluation.benchmark import Benchmark
from milora.evaluation.numbers import extract_answer
from milora.run.data import load_rows

GSM8K = Benchmark(
    name="gsm8k",
    version=1,
    load=lambda data_dir: load_rows("gsm8k", "test", data_dir),
    extract=extract_answer,
    max_new_tokens=1024,
    stops=("Instruction:", "Instruction", "Response:", "Response"),
)
