"""A choice among words, such as answer1 … answer5: as LLM-Adapters reads it, and the one that is stated last."""

import re
from collections.abc import Callable

from milora.evaluation.graders.grade import Grade
from milora.evaluation.graders.numbers import NEXT_PROMPT


def official_choice(words: tuple[str, ...]) -> Callable[[str, str], Grade]:
    """Grade by the first place where any of the words stands, inside another word or not, in lower case.

    Source: AGI-Edgerunners/LLM-Adapters, commonsense_evaluate.py, lines 74 and 265-298.
    """
    pattern = re.compile("|".join(words))

    def grade(completion: str, gold: str) -> Grade:
        found = pattern.search(completion.split("### Response:")[0])
        return Grade(found and found[0], found is not None and found[0] == _gold(gold))

    return grade


def corrected_choice(words: tuple[str, ...]) -> Callable[[str, str], Grade]:
    """Grade by the choice that is stated last, as a whole word; after "the correct answer is" if that is said.

    A negated choice is none, and neither is one of two that stand as alternatives.
    """
    either = "|".join(words)
    word = re.compile(rf"\b(?<!not )(?<!n't )({either})\b", re.IGNORECASE)
    stated = re.compile(rf"\bcorrect answer is:? *\W?({either})\b", re.IGNORECASE)
    joined = re.compile(rf"\b({either})\W*(?:\bor\b|\band\b|/|,)\W*({either})\b", re.IGNORECASE)

    def read(completion: str) -> str | None:
        text = completion.split(NEXT_PROMPT)[0]
        found = list(stated.finditer(text)) or list(word.finditer(text))
        if not found:
            return None
        last = found[-1]
        alternatives = [match for match in joined.finditer(text) if match.start() <= last.start() < match.end()]
        if any(match[1].lower() != match[2].lower() for match in alternatives):
            return None
        return last[1].lower()

    def grade(completion: str, gold: str) -> Grade:
        answer = read(completion)
        return Grade(answer, answer is not None and answer == _gold(gold))

    return grade


def _gold(text: str) -> str:
    return text.split()[-1]
