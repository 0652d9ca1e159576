"""The benchmarks by name, and the groups of them."""

from milora.evaluation.benchmarks.alpaca_eval import ALPACA_EVAL_1, ALPACA_EVAL_2
from milora.evaluation.benchmarks.arithmetic import ARITHMETIC
from milora.evaluation.benchmarks.benchmark import Benchmark as Benchmark
from milora.evaluation.benchmarks.commonsense import COMMONSENSE
from milora.evaluation.benchmarks.follow_bench import FOLLOW_BENCH
from milora.evaluation.benchmarks.gqa import GQA
from milora.evaluation.benchmarks.gsm8k import GSM8K
from milora.evaluation.benchmarks.humaneval import HUMANEVAL
from milora.evaluation.benchmarks.ifeval import IFEVAL
from milora.evaluation.benchmarks.math import MATH
from milora.evaluation.benchmarks.mmbench import MMBENCH, MMBENCH_TEST
from milora.evaluation.benchmarks.mt_bench import MT_BENCH
from milora.evaluation.benchmarks.packaged import PACKAGED_BENCHMARKS
from milora.evaluation.benchmarks.pope import POPE
from milora.evaluation.benchmarks.scienceqa import SCIENCEQA
from milora.evaluation.benchmarks.textvqa import TEXTVQA
from milora.evaluation.benchmarks.vizwiz import VIZWIZ, VIZWIZ_TEST
from milora.evaluation.benchmarks.vqav2 import VQAV2, VQAV2_TEST

# In the order of the paper's table 4.
VISION = (VQAV2, GQA, VIZWIZ, SCIENCEQA, TEXTVQA, POPE, MMBENCH)
VISION_BLIND = tuple(benchmark.without_seeing() for benchmark in VISION)

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        *(ARITHMETIC, GSM8K, MATH, *COMMONSENSE, HUMANEVAL),
        *(ALPACA_EVAL_1, ALPACA_EVAL_2, IFEVAL, *FOLLOW_BENCH, MT_BENCH),
        *(*VISION, *VISION_BLIND, VQAV2_TEST, VIZWIZ_TEST, MMBENCH_TEST, *PACKAGED_BENCHMARKS),
    )
}
# Of these, the average is a score of its own.
GROUPS = {
    "commonsense": [benchmark.name for benchmark in COMMONSENSE],
    "follow_bench": [benchmark.name for benchmark in FOLLOW_BENCH],
    "vision": [benchmark.name for benchmark in VISION],
    "vision_blind": [benchmark.name for benchmark in VISION_BLIND],
}
# These are names for several tasks, and no more: their metrics are of different kinds.
SUITES = {"instruction": [ALPACA_EVAL_2.name, IFEVAL.name, *GROUPS["follow_bench"]]}
