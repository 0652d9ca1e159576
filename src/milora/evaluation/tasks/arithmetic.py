"""The embedded word problems, held-out wording and numbers; exact answer."""

from milora.evaluation.benchmark import Benchmark
from milora.evaluation.numbers import extract_answer
from milora.run.data import load_rows

ARITHMETIC = Benchmark(
    name="arithmetic",
    version=1,
    load=lambda data_dir: load_rows("arithmetic", "test", data_dir),
    extract=extract_answer,
    max_new_tokens=40,
)
