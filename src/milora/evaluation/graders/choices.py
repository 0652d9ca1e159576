"""A choice among words, such as answer1 … answer5: as LLM-Adapters reads it, and the one that is stated."""

import re
from collections.abc import Callable

from milora.evaluation.graders.grade import Grade
from milora.evaluation.graders.mentions import find_mentions, mention_pattern
from milora.evaluation.graders.numbers import NEXT_PROMPT
from milora.evaluation.graders.plain import STRUCK_OUT, TAGS
from milora.evaluation.graders.stance import TAKEN_BACK, Stance


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
    """Grade by the choice that is stated: answer3, "answer 3", "Answer (3)", "the third answer".

    Each mention is affirmed, denied, or in doubt. If several choices are affirmed, the last one counts that is
    announced as the answer ("the correct answer is …") or corrects an earlier one ("wait, …"); without such words none
    counts. An answer that is denied later, followed by doubt about another choice, or taken back counts as none.
    """
    pattern = mention_pattern(words)

    def read(completion: str) -> str | None:
        text = TAGS.sub("", STRUCK_OUT.sub(" ", completion.split(NEXT_PROMPT)[0]))
        mentions = find_mentions(pattern, text)
        affirmed = [item for item in mentions if item.stance is Stance.AFFIRMED]
        if len({item.choice for item in affirmed}) > 1:
            last = affirmed[-1]
            announced = [item for item in affirmed if item.announced]
            corrected = announced and any(item.corrects for item in affirmed[affirmed.index(announced[-1]) + 1 :])
            affirmed = [last] if last.corrects else [] if corrected else announced
        if not affirmed:
            return None
        answer = affirmed[-1]
        for later in mentions[mentions.index(answer) + 1 :]:
            same = later.choice == answer.choice
            if later.stance is (Stance.DENIED if same else Stance.DOUBTED):
                return None
            if later.stance is Stance.MENTIONED and not same and not answer.announced:
                return None
        return None if TAKEN_BACK.search(text[mentions[-1].end :]) else answer.choice

    def grade(completion: str, gold: str) -> Grade:
        answer = read(completion)
        return Grade(answer, float(answer is not None and answer == _gold(gold)))

    return grade


def _gold(text: str) -> str:
    return text.split()[-1]
