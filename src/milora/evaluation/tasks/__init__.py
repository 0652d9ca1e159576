"""The benchmarks by name, and the groups of them."""

from milora.evaluation.tasks.arithmetic import ARITHMETIC
from milora.evaluation.tasks.commonsense import COMMONSENSE
from milora.evaluation.tasks.gsm8k import GSM8K
from milora.evaluation.tasks.humaneval import HUMANEVAL
from milora.evaluation.tasks.mathematics import MATH

BENCHMARKS = {benchmark.name: benchmark for benchmark in (ARITHMETIC, GSM8K, MATH, *COMMONSENSE, HUMANEVAL)}
GROUPS = {"commonsense": [benchmark.name for benchmark in COMMONSENSE]}
