"""A choice among words, such as answer1 … answer5: as LLM-Adapters reads it, and the one that is stated last."""

import re
from collections.abc import Callable
from itertools import pairwise

from milora.evaluation.graders.grade import Grade
from milora.evaluation.graders.numbers import NEXT_PROMPT

JOINED = re.compile(r"[^\w.;:!?]*(?:or|and|nor|to)?[^\w.;:!?]*", re.IGNORECASE)
CLAUSE = re.compile(r"[.,;:!?\n]|\bbut\b", re.IGNORECASE)
NEGATED_BEFORE = re.compile(r"(?:\b(?:not|never|neither|nor|cannot|no)|n['’]t)\b(?:\W+\w+){0,3}\W*$", re.IGNORECASE)
NEGATED_AFTER = re.compile(
    r"['\"*)]*(?:\s(?:is|was|are|seems|can|could|would|be|clearly|also)){0,3}(?:\s(?:not|wrong|incorrect)|n['’]t)\b",
    re.IGNORECASE,
)


def official_choice(words: tuple[str, ...]) -> Callable[[str, str], Grade]:
    """Grade by the first occurrence of any of the words, inside another word or not, in lower case.

    Source: AGI-Edgerunners/LLM-Adapters, commonsense_evaluate.py, lines 74 and 265-298.
    """
    pattern = re.compile("|".join(words))

    def grade(completion: str, gold: str) -> Grade:
        found = pattern.search(completion.split("### Response:")[0])
        return Grade(found and found[0], float(found is not None and found[0] == _gold(gold)))

    return grade


def corrected_choice(words: tuple[str, ...]) -> Callable[[str, str], Grade]:
    """Grade by the choice that is stated last, as a whole word; after "the correct answer is" if that is said.

    A negated choice does not count, nor does one of several that are given as alternatives.
    """
    either = "|".join(words)
    word = re.compile(rf"\b({either})\b", re.IGNORECASE)
    stated = re.compile(rf"\bcorrect answer is:? *\W?({either})\b", re.IGNORECASE)

    def read(completion: str) -> str | None:
        text = completion.split(NEXT_PROMPT)[0]
        found = list(word.finditer(text))
        said = {match.start(1) for match in stated.finditer(text)}
        kept = [i for i, match in enumerate(found) if not _is_negated(text, match)]
        kept = [i for i in kept if found[i].start() in said] or kept
        if not kept:
            return None
        last = kept[-1]
        answer = found[last][1].lower()
        # Its neighbors on both sides, each with the text in between.
        for one, other in pairwise(found[max(last - 1, 0) : last + 2]):
            if JOINED.fullmatch(text[one.end() : other.start()]) and one[1].lower() != other[1].lower():
                return None
        return answer

    def grade(completion: str, gold: str) -> Grade:
        answer = read(completion)
        return Grade(answer, float(answer is not None and answer == _gold(gold)))

    return grade


def _is_negated(text: str, match: re.Match[str]) -> bool:
    clause = CLAUSE.split(text[: match.start()])[-1]
    return bool(NEGATED_BEFORE.search(clause) or NEGATED_AFTER.match(text[match.end() :]))


def _gold(text: str) -> str:
    return text.split()[-1]
