"""The benchmarks by name."""

from milora.evaluation.tasks.arc_easy import ARC_EASY
from milora.evaluation.tasks.arithmetic import ARITHMETIC
from milora.evaluation.tasks.gsm8k import GSM8K

BENCHMARKS = {benchmark.name: benchmark for benchmark in (ARITHMETIC, GSM8K, ARC_EASY)}
