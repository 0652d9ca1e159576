"""GQA's balanced testdev split: greedy, 128 new tokens, exact match."""

from milora.data.conversation import Conversation
from milora.evaluation.benchmarks.benchmark import Benchmark
from milora.evaluation.benchmarks.vqav2 import NEW_TOKENS
from milora.evaluation.graders.grade import Grade
from milora.evaluation.graders.vqa import ACCURACY


def grade(completions: list[str], rows: list[Conversation]) -> dict[str, list[Grade]]:
    """Grade the answer in lower case, without periods at its end: what LLaVA gives to GQA's evaluation."""
    answers = [text.strip().rstrip(".").lower() for text in completions]
    pairs = zip(answers, rows, strict=True)
    return {ACCURACY: [Grade(answer or None, float(answer == row.answer)) for answer, row in pairs]}


GQA = Benchmark(
    name="gqa", version=1, prompt=None, has_pictures=True, grade=grade, max_new_tokens=NEW_TOKENS, primary=ACCURACY
)
