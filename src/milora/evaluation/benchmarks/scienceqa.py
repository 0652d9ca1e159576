"""ScienceQA's test split: greedy, 1024 new tokens, the letter of an option.

The headline is over the questions with a picture; half of them have none.
"""

from milora.data.conversation import Conversation
from milora.evaluation.benchmarks.benchmark import Benchmark
from milora.evaluation.graders.grade import Grade
from milora.evaluation.graders.letters import read_scienceqa

NEW_TOKENS = 1024
PICTURE, ALL = "picture", "all"


def grade(completions: list[str], rows: list[Conversation]) -> dict[str, list[Grade]]:
    """Grade questions with a picture, which are what is published as ScienceQA-IMG, and all questions."""
    letters = [read_scienceqa(text) for text in completions]
    verdicts = [Grade(letter, float(letter == row.answer)) for letter, row in zip(letters, rows, strict=True)]
    pictured = [
        verdict if row.images else Grade(verdict.answer, None, "the question has no picture")
        for verdict, row in zip(verdicts, rows, strict=True)
    ]
    return {PICTURE: pictured, ALL: verdicts}


SCIENCEQA = Benchmark(
    name="scienceqa", version=1, prompt=None, has_pictures=True, grade=grade, max_new_tokens=NEW_TOKENS, primary=PICTURE
)
