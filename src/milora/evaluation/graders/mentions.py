"""Where a text mentions a choice: answer3, "answer 3", "Answer (3)", "the third answer"."""

import re
from dataclasses import dataclass
from itertools import pairwise

from milora.evaluation.graders.stance import ANNOUNCED, CORRECTS, Stance, stance_of

CARDINALS = ("one", "two", "three", "four", "five")
ORDINALS = ("first", "second", "third", "fourth", "fifth")
NEARBY = 100  # characters that may announce a choice or join two; the expressions are slow on long texts
SUFFIXES = ("st", "nd", "rd", "th", "th")
# What may follow a number that names a choice; "answer 3 kg" and "answer 3 or 4" name none.
VERBS = r"is|works|was|are|seems|makes?|fits|would|does|doesn't|can|cannot|has|beats|might|may|could|wouldn't|will|must"
LINKS = r"because|since|as|so|or|and|nor|but|not|rather|instead|than|if|unless|over|to|versus|vs|unlike|was"
FOLLOWS = rf"(?![\w%°$€])(?!['\"*)\]}}]*(?:\s*[.,/&+-]\s?\d|\s(?:or|and|to)\s\d|\s(?!(?:{VERBS}|{LINKS})\b)[\w%°$€]))"

JOINED = re.compile(r"[^\w.;:!?]*(or|and|nor|to|and/or|and also|as well as|or the|and the)?[^\w.;:!?]*", re.IGNORECASE)


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
        stance_of(before, after, own=str(match.lastgroup))
        for match, (before, after) in zip(found, pairwise(between), strict=True)
    ]
    for i, (one, other) in enumerate(pairwise(found)):
        joined = JOINED.fullmatch(text, one.end(), other.start()) if other.start() - one.end() < NEARBY else None
        if joined and one.lastgroup != other.lastgroup:
            stances[i : i + 2] = _stances_together(stances[i], stances[i + 1], has_word=bool(joined[1]))
    mentions = []
    for match, stance in zip(found, stances, strict=True):
        before = text[max(match.start() - NEARBY, 0) : match.start()]
        announced, corrects = bool(ANNOUNCED.search(before)), bool(CORRECTS.search(before))
        mentions.append(Mention(str(match.lastgroup), match.end(), stance, announced, corrects))
    return mentions


def _stances_together(first: Stance, second: Stance, *, has_word: bool) -> list[Stance]:
    """The stances of two choices in one list: both are denied in "neither 1 nor 2"; in "1 or 2" both are in doubt."""
    if first is Stance.DENIED:
        return [first, first]
    if second is Stance.DENIED:
        return [second if has_word else first, second]
    return [Stance.DOUBTED, Stance.DOUBTED]
