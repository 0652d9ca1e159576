"""Where a text mentions a choice, and whether it affirms the choice, denies it, or leaves it in doubt."""

import re
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

CARDINALS = ("one", "two", "three", "four", "five")
ORDINALS = ("first", "second", "third", "fourth", "fifth")
SUFFIXES = ("st", "nd", "rd", "th", "th")
# What may follow a number that names a choice; "answer 3 kg" and "answer 3 or 4" name none.
VERBS = r"is|was|are|seems|makes?|fits|would|does|doesn't|can|cannot|has|beats|might|may|could|wouldn't|will|must"
LINKS = r"because|since|as|so|or|and|nor|but|not|rather|instead|than|if|unless|over|to|versus|vs|unlike|was"
FOLLOWS = rf"(?![\w%°$€])(?!['\"*)\]}}]*(?:\s*[.,/&+-]\s?\d|\s(?:or|and|to)\s\d|\s(?!(?:{VERBS}|{LINKS})\b)[\w%°$€]))"

ANNOUNCED = re.compile(
    r"(?:(?<!in)\b(?:correct|right|best|final|(?<!least )likely|plausible)\s+|\b(?:the|my)\s+|^\W*|[.\n]\W*)"
    r"(?:answer|choice|option|solution|ending)(?:\s+is|\s+would be)?\s*(?::|\bis\b|\bbe\b)?:?\W*(?:option |the )?$",
    re.IGNORECASE,
)
CORRECTS = re.compile(
    r"\b(?:wait|no|actually|sorry|correction|rather|i mean|so|therefore|thus|hence|instead)\b[\s,:.!–—-]*"
    r"(?:it'?s |it is |(?:the )?(?:correct )?answer is |i choose )?(?:the )?\W*$",
    re.IGNORECASE,
)
TAKEN_BACK = re.compile(
    r"\b(?:wait|actually|scratch that|never mind|on second thought)\b|\bno\b[,.]|\bi disagree\b", re.IGNORECASE
)
# A clause begins after one of these, and ends before.
CLAUSE = re.compile(
    r"[.,;:!?\n]|\s[-–—]\s|—|(?<!anything )\bbut\b|\b(?:because|since|so|while|whereas|although)\b", re.IGNORECASE
)
CERTAIN = re.compile(r"\b(?:no|without a|without any) (?:doubt|question)\b|\bnot only\b", re.IGNORECASE)
DENIED_BEFORE = re.compile(
    r"\b(?:not|never|neither|nor|cannot|no|none|nothing|without|wrong|incorrect|false|mistake|worst|myth|misconception"
    r"|except|excluding|than|over|unlike|beats|instead of|anything but|opposite of|far from|hardly|rarely|partly"
    r"|partially|half|almost|nearly|least|less|eliminate|rule out|reject|exclude|disagree|avoid|discard"
    r"|some|others|they|people|many|would say)\b|n['’]t\b|[✗✘❌❎]",
    re.IGNORECASE,
)
DOUBTED_BEFORE = re.compile(
    r"\b(?:maybe|perhaps|possibly|might|may|could|whether|if|unless|otherwise|either|both|between"
    r"|is (?:it|this|that))\b",
    re.IGNORECASE,
)
CLOSE = r"['\"”*_)\]}]*"
FILLERS = (
    r"(?:(?:is|was|are|seems?|looks?|sounds?|can|could|would|be|has|have|will|both|also|clearly|obviously|definitely"
    r"|simply|just|the|a|an|very|much|far|more|quite)\s+)*"
)
DENIED_AFTER = re.compile(
    rf"{CLOSE}(?:\s+{FILLERS}(?:not|never|no|wrong|incorrect|false|unlikely|implausible|impossible|improbable|out|worse"
    r"|less|least|bad|ruled|eliminated|excluded|rejected|cannot|makes? (?:no|little|less)|fails?|lacks?|was my first"
    r"|(?:do|does|did) not|\w+n['’]t)\b|\s*[(:–—-]\s*(?:wrong|incorrect|no)\b|\s*[✗✘❌❎])",
    re.IGNORECASE,
)
DOUBTED_AFTER = re.compile(rf"{CLOSE}(?:\?|-ish\b|\s+(?:if|unless|or not|or|might|may|could)\b)", re.IGNORECASE)
JOINED = re.compile(r"[^\w.;:!?]*(or|and|nor|to|and/or|and also|as well as|or the|and the)?[^\w.;:!?]*", re.IGNORECASE)


class Stance(Enum):
    """What a text says of a choice."""

    AFFIRMED = 1
    DENIED = 2
    DOUBTED = 3


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
    starts = [0, *(match.end() for match in found)]
    stances = [
        _stance(text[start : match.start()], text[match.end() :]) for start, match in zip(starts, found, strict=False)
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


def _stance(before: str, after: str) -> Stance:
    """The stance of a text toward a choice, from what is between it and the choice before, and from what follows."""
    clause = CERTAIN.sub("", CLAUSE.split(before)[-1])
    if DENIED_BEFORE.search(clause) or DENIED_AFTER.match(after):
        return Stance.DENIED
    return Stance.DOUBTED if DOUBTED_BEFORE.search(clause) or DOUBTED_AFTER.match(after) else Stance.AFFIRMED


def _stances_together(first: Stance, second: Stance, *, has_word: bool) -> list[Stance]:
    """The stances of two choices in one list: both are denied in "neither 1 nor 2"; in "1 or 2" both are in doubt."""
    if first is Stance.DENIED:
        return [first, first]
    if second is Stance.DENIED:
        return [second if has_word else first, second]
    return [Stance.DOUBTED, Stance.DOUBTED]
