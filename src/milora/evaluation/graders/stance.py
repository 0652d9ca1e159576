"""Whether a text affirms a choice, denies it, leaves it in doubt, or only mentions it."""

import re
from enum import Enum

ANNOUNCED = re.compile(
    r"(?:(?<!in)\b(?:correct|right|best|final|(?<!least )likely|plausible)\s+|\b(?:the|my)\s+|^\W*|[.\n]\W*)"
    r"(?:answer|choice|option|solution|ending)\s*(?::|\bis\b|\b(?:would|must|should) be\b):?\W*(?:option |the )?$",
    re.IGNORECASE,
)
CORRECTS = re.compile(
    r"\b(?:wait|no|actually|sorry|correction|rather|i mean|so|therefore|thus|hence|instead)\b[\s,:.!–—-]*"
    r"(?:it'?s |it is |(?:the )?(?:correct )?answer is |i choose )?(?:the )?\W*$",
    re.IGNORECASE,
)
TAKEN_BACK = re.compile(
    r"\b(?:wait|actually|scratch that|never mind|on second thought|hmm|i disagree)\b|\bno\b[,.]"
    r"|^[^\w?]*(?:it|this|that|which)(?:['’]s| is| was) (?:not|wrong|incorrect|false)\b"
    r"|^[^\w?]*(?:it|this|that|which) \w+n['’]t\b",
    re.IGNORECASE,
)
# A clause begins after one of these; after a choice it ends before one of these, or of the words that give a reason.
BOUNDARY = re.compile(r"(?<!\bvs)\.|[,;:!?\n()]|\s[-–—]\s|—")
END = re.compile(
    BOUNDARY.pattern + r"|\b(?:because|since|as|so|than|but|and|rather|instead|while|whereas|although|that)\b",
    re.IGNORECASE,
)
# The words of a clause that states its choice. With any other word, the clause only mentions it.
STATING = frozenset(
    re.findall(
        r"\w+",
        """
        the my our correct right best better final most more likely plausible probable sensible logical
        appropriate suitable answer choice option solution ending one is are was be would must i d ll choose
        pick select go with think believe say it this that s statement claim there so therefore thus hence
        and yes no well clearly definitely certainly obviously boxed text makes make sense fits fit works
        seems looks sounds am sure confident indeed absolutely should use we you safer easier practical
        prefer m
        """,
    )
)
# Phrases that change nothing.
NEUTRAL = re.compile(
    r"\b(?:no|without a|without any) (?:doubt|question)\b|\b(?:to|for) (?:the|this) question\b"
    r"|\bin (?:this case|my opinion)\b"
    r"|\b(?:according to|based on|from) the \w+\b|\bthe way to go\b|\bhere\b",
    re.IGNORECASE,
)
DENIED_BEFORE = re.compile(
    r"\b(?:not|never|neither|nor|cannot|no|none|nothing|without|wrong|incorrect|false|mistake|worst|myth|misconception"
    r"|except|excluding|than|over|unlike|beats|instead of|rather than|anything but|opposite of|far from|hardly|least"
    r"|less|eliminate|rule out|reject|exclude|disagree|avoid|discard|some|others|they|people|many)\b|n['’]t\b"
    r"|[✗✘❌❎]",
    re.IGNORECASE,
)
DOUBTED_BEFORE = re.compile(
    r"\b(?:or|maybe|perhaps|possibly|might|may|could|whether|if|unless|otherwise|either|both|between"
    r"|is (?:it|this|that))\b",
    re.IGNORECASE,
)
CONDITION = re.compile(r"\W*(?:if|unless|had|were|should)\b", re.IGNORECASE)  # it opens a sentence
CLOSE = r"['\"”*_)\]}]*"
DENIED_AFTER = re.compile(
    r"\b(?:not|never|no|wrong|incorrect|false|unlikely|implausible|impossible|improbable|worse|worst|less|least|little"
    r"|bad|poor|out|eliminated|excluded|rejected|cannot|fails?|lacks?|was my first)\b|n['’]t\b|[✗✘❌❎]",
    re.IGNORECASE,
)
DENIED_NEXT = re.compile(rf"{CLOSE}\s*[(:–—-]\s*(?:(?:wrong|incorrect|no|unlikely|less)\b|it is not\b)", re.IGNORECASE)
DOUBTED_AFTER = re.compile(rf"{CLOSE}(?:\?|-ish\b|:\s?\d|\s+(?:if|unless|or|might|may|could)\b)", re.IGNORECASE)


class Stance(Enum):
    """What a text says of a choice."""

    AFFIRMED = 1
    DENIED = 2
    DOUBTED = 3
    MENTIONED = 4


def stance_of(before: str, after: str, own: str) -> Stance:
    """The stance of a text toward a choice, from what is between it and the choices beside it."""
    opening = re.sub(r"^\W*(?:but|so|and)\b", "", BOUNDARY.split(NEUTRAL.sub("", before))[-1], flags=re.IGNORECASE)
    closing = END.split(NEUTRAL.sub("", after))[0]
    if DENIED_BEFORE.search(opening) or DENIED_AFTER.search(closing) or DENIED_NEXT.match(after):
        return Stance.DENIED
    if (
        CONDITION.match(re.split(r"[.!?\n]", before)[-1])
        or DOUBTED_BEFORE.search(opening)
        or DOUBTED_AFTER.match(after)
    ):
        return Stance.DOUBTED
    # What follows "the correct answer is …" may be anything.
    words = re.findall(r"\w+", (opening if ANNOUNCED.search(before[-100:]) else f"{opening} {closing}").lower())
    return Stance.AFFIRMED if STATING.issuperset({*words} - {own[-1]}) else Stance.MENTIONED
