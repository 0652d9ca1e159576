"""Where a text mentions a choice, and whether it affirms the choice, denies it, or leaves it in doubt."""

import re
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

CARDINALS = ("one", "two", "three", "four", "five")
ORDINALS = ("first", "second", "third", "fourth", "fifth")
SUFFIXES = ("st", "nd", "rd", "th", "th")
# What may follow a number that names a choice; "answer 3 kg" and "answer 3 or 4" name none.
VERBS = r"is|works|was|are|seems|makes?|fits|would|does|doesn't|can|cannot|has|beats|might|may|could|wouldn't|will|must"
LINKS = r"because|since|as|so|or|and|nor|but|not|rather|instead|than|if|unless|over|to|versus|vs|unlike|was"
FOLLOWS = rf"(?![\w%°$€])(?!['\"*)\]}}]*(?:\s*[.,/&+-]\s?\d|\s(?:or|and|to)\s\d|\s(?!(?:{VERBS}|{LINKS})\b)[\w%°$€]))"

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
    r"|^[^\w?]*(?:it|this|that|which)(?:['’]s| is| was) (?:not|wrong|incorrect|false)\b|^[^\w?]*(?:it|this|that|which) \w+n['’]t\b",
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
    "the my our correct right best better final most more likely plausible probable sensible logical appropriate suitable"
    " answer choice option solution ending one is are was be would must i d ll choose pick select go with think believe say"
    " it this that s statement claim there so therefore thus hence and yes no well clearly definitely certainly obviously"
    " boxed text makes make sense fits fit works seems looks sounds am sure confident indeed absolutely should use we you"
    " safer easier practical prefer m".split()
)
# Phrases that change nothing.
NEUTRAL = re.compile(
    r"\b(?:no|without a|without any) (?:doubt|question)\b|\b(?:to|for) (?:the|this) question\b|\bin (?:this case|my opinion)\b"
    r"|\b(?:according to|based on|from) the \w+\b|\bthe way to go\b|\bhere\b",
    re.IGNORECASE,
)
DENIED_BEFORE = re.compile(
    r"\b(?:not|never|neither|nor|cannot|no|none|nothing|without|wrong|incorrect|false|mistake|worst|myth|misconception"
    r"|except|excluding|than|over|unlike|beats|instead of|rather than|anything but|opposite of|far from|hardly|least|less"
    r"|eliminate|rule out|reject|exclude|disagree|avoid|discard|some|others|they|people|many)\b|n['’]t\b"
    r"|[✗✘❌❎]",
    re.IGNORECASE,
)
DOUBTED_BEFORE = re.compile(
    r"\b(?:or|maybe|perhaps|possibly|might|may|could|whether|if|unless|otherwise|either|both|between"
    r"|is (?:it|this|that))\b",
    re.IGNORECASE,
)
CLOSE = r"['\"”*_)\]}]*"
DENIED_AFTER = re.compile(
    r"\b(?:not|never|no|wrong|incorrect|false|unlikely|implausible|impossible|improbable|worse|worst|less|least|little"
    r"|bad|poor|out|eliminated|excluded|rejected|cannot|fails?|lacks?|was my first)\b|n['’]t\b|[✗✘❌❎]",
    re.IGNORECASE,
)
DENIED_NEXT = re.compile(rf"{CLOSE}\s*[(:–—-]\s*(?:(?:wrong|incorrect|no|unlikely|less)\b|it is not\b)", re.IGNORECASE)
DOUBTED_AFTER = re.compile(rf"{CLOSE}(?:\?|-ish\b|:\s?\d|\s+(?:if|unless|or|might|may|could)\b)", re.IGNORECASE)
JOINED = re.compile(r"[^\w.;:!?]*(or|and|nor|to|and/or|and also|as well as|or the|and the)?[^\w.;:!?]*", re.IGNORECASE)


class Stance(Enum):
    """What a text says of a choice."""

    AFFIRMED = 1
    DENIED = 2
    DOUBTED = 3
    MENTIONED = 4


@dataclass(frozen=True, slots=True)
class Mention:
    """A choice at a place in a text; `announced` as the answer, or one that `corrects` an earlier one."""

    choice: str
    end: int
    stance: Stance
    announced: bool
    corrects: bool


def mention_pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    """A pattern with a group named as each word: the word, and where it ends in a digit, its other spellings."""
    return re.compile("|".join(f"(?P<{word}>{_spellings(word)})" for word in words), re.IGNORECASE)


def _spellings(word: str) -> str:
    noun, digit = word.rstrip("0123456789"), word[len(word.rstrip("0123456789")) :]
    if not digit:
        return rf"\b{word}\b"
    place = int(digit) - 1
    number = rf"(?:{digit}|{CARDINALS[place]})"
    ordinal = rf"(?:{ORDINALS[place]}|{digit}{SUFFIXES[place]})"
    return (
        rf"\b{word}\b|\b{noun}\s(?:#|number\s|no\.\s)?{number}\b{FOLLOWS}|\b{noun}\s?\({digit}\)"
        rf"|\b{ordinal} {noun}\b(?=\W*$|\s*[.,;:!?]|\s+is\b)"
    )


def find_mentions(pattern: re.Pattern[str], text: str) -> list[Mention]:
    """Return the choices that the pattern's groups find, in order, each with what the text says of it."""
    found = list(pattern.finditer(text))
    edges = [0, *(edge for match in found for edge in match.span()), len(text)]
    between = [text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]
    stances = [
        _stance(before, after, own=str(match.lastgroup))
        for match, (before, after) in zip(found, pairwise(between), strict=True)
    ]
    for i, (one, other) in enumerate(pairwise(found)):
        joined = JOINED.fullmatch(text[one.end() : other.start()])
        if joined and one.lastgroup != other.lastgroup:
            stances[i : i + 2] = _stances_together(stances[i], stances[i + 1], has_word=bool(joined[1]))
    mentions = []
    for match, stance in zip(found, stances, strict=True):
        before = text[: match.start()]
        announced, corrects = bool(ANNOUNCED.search(before)), bool(CORRECTS.search(before))
        mentions.append(Mention(str(match.lastgroup), match.end(), stance, announced, corrects))
    return mentions


def _stance(before: str, after: str, own: str) -> Stance:
    """The stance of a text toward a choice, from what is between it and the choices beside it."""
    opening = re.sub(r"^\W*(?:but|so|and)\b", "", BOUNDARY.split(NEUTRAL.sub("", before))[-1], flags=re.IGNORECASE)
    closing = END.split(NEUTRAL.sub("", after))[0]
    if DENIED_BEFORE.search(opening) or DENIED_AFTER.search(closing) or DENIED_NEXT.match(after):
        return Stance.DENIED
    if DOUBTED_BEFORE.search(opening) or DOUBTED_AFTER.match(after):
        return Stance.DOUBTED
    # What follows "the correct answer is …" may be anything.
    words = re.findall(r"\w+", (opening if ANNOUNCED.search(before) else f"{opening} {closing}").lower())
    return Stance.AFFIRMED if STATING.issuperset({*words} - {own[-1]}) else Stance.MENTIONED


def _stances_together(first: Stance, second: Stance, *, has_word: bool) -> list[Stance]:
    """The stances of two choices in one list: both are denied in "neither 1 nor 2"; in "1 or 2" both are in doubt."""
    if first is Stance.DENIED:
        return [first, first]
    if second is Stance.DENIED:
        return [second if has_word else first, second]
    return [Stance.DOUBTED, Stance.DOUBTED]
