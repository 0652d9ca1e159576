"""TextVQA's validation split with OCR tokens in the question: greedy, 128 new tokens, M4C's VQA accuracy."""

from milora.evaluation.benchmarks.benchmark import Benchmark
from milora.evaluation.benchmarks.vqav2 import NEW_TOKENS
from milora.evaluation.graders.vqa import ACCURACY, grade_answers, score_textvqa

TEXTVQA = Benchmark(
    name="textvqa",
    version=1,
    prompt=None,
    has_pictures=True,
    grade=grade_answers(score_textvqa),
    max_new_tokens=NEW_TOKENS,
    primary=ACCURACY,
)
