"""The benchmarks by name, and the groups of them."""

from milora.evaluation.benchmarks.alpaca_eval import ALPACA_EVAL_1, ALPACA_EVAL_2
from milora.evaluation.benchmarks.arithmetic import ARITHMETIC
from milora.evaluation.benchmarks.benchmark import Benchmark as Benchmark
from milora.evaluation.benchmarks.commonsense import COMMONSENSE
from milora.evaluation.benchmarks.gsm8k import GSM8K
from milora.evaluation.benchmarks.humaneval import HUMANEVAL
from milora.evaluation.benchmarks.math import MATH

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (ARITHMETIC, GSM8K, MATH, *COMMONSENSE, HUMANEVAL, ALPACA_EVAL_1, ALPACA_EVAL_2)
}
GROUPS = {"commonsense": [benchmark.name for benchmark in COMMONSENSE]}
