"""Quantities in a sentence: a number in digits or in words, and the scale words after it, exactly."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

SCALES = {
    "hundred": 10**2,
    "thousand": 10**3,
    "lakh": 10**5,
    "million": 10**6,
    "crore": 10**7,
    "billion": 10**9,
    "bn": 10**9,
    "mn": 10**6,
    "mil": 10**6,
    "trillion": 10**12,
    "dozen": 12,
    "doz": 12,
    "dz": 12,
    "k": 10**3,
    "M": 10**6,  # 3M is three million, 3 m are three meters; 3B are three billion
    "B": 10**9,
}
SCALE = re.compile(
    rf"\s?(?<![a-zA-Z])(?:(?i:({'|'.join(name for name in SCALES if name not in 'MB')})s?)\b(?!-)|([MB])\b)"
)
# fmt: off
WORDS = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50,
    "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}
# fmt: on
WORD = "|".join([*sorted(WORDS, key=len, reverse=True), "hundred", "thousand", "million", "billion", "trillion"])
# A sign may come before or after the currency; thousands come in threes; then decimals, a power of ten or a fraction.
DASH = "-\u2212\u2013\u2010\u2011\ufe63\uff0d"
QUANTITY = re.compile(
    rf"(?P<sign>[{DASH}]|\b(?:minus|negative)\b)? ?[$€£₹¥(]? ?(?P<minus>[{DASH}])? ?"
    r"(?:(?P<value>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?\.\d+(?:[eE][-+]?\d{1,3})?"
    r"|(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:[eE][-+]?\d{1,3})?)"
    r"(?: ?/ ?(?P<denominator>\d+)| (?P<part>\d+ ?/ ?\d+))?"
    rf"|\b(?P<words>(?:{WORD})(?:(?:-| and | )(?:{WORD}))*|an?(?= (?:dozen|hundred|thousand|million|billion)\b))\b)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number at a place in a sentence, None if it is none (12/0), and what the scale words after it come to."""

    start: int
    end: int
    number: Fraction | None
    scale: int
    in_words: bool

    @property
    def value(self) -> Fraction | None:
        return None if self.number is None else self.number * self.scale


def find_quantities(sentence: str) -> Iterator[Quantity]:
    """Yield the quantities of a sentence, in order."""
    match = QUANTITY.search(sentence)
    while match:
        end, scale = match.end(), 1
        if match["words"] and (last := re.search(r" (?:thousand|[mbtr]+illion)$", match["words"], re.IGNORECASE)):
            end -= len(last[0])
        number = _number(match, end)
        while named := SCALE.match(sentence, end):
            scale *= SCALES[named[2] or named[1].lower()]
            end = named.end()
        yield Quantity(match.start(), end, number, scale, bool(match["words"]))
        match = QUANTITY.search(sentence, end)


def _number(match: re.Match[str], end: int) -> Fraction | None:
    """The number of a match, of which the words are read up to `end`."""
    part, below = (match["part"] or f"0/{match['denominator'] or 1}").split("/")
    if not int(below) or (match["sign"] and match["minus"]):
        return None
    if match["words"]:
        value = _in_words(match.string[match.start("words") : end].lower())
    else:
        value = Fraction(match["value"].replace(",", ""))
        value = value + Fraction(int(part), int(below)) if match["part"] else value / int(below)
    return -value if value and (match["sign"] or match["minus"]) else value


def _in_words(text: str) -> Fraction | None:
    """Read "two thousand one hundred and five"; None for words that make no number together, such as "five five"."""
    total, group, room = 0, 0, 10**15  # `room`: what comes next must be less
    for word in re.split(r"[- ]", text):
        if word in ("a", "an"):
            group = 1
        elif word == "and":
            if room not in (100, 1000):
                return None
        elif word in WORDS:
            if WORDS[word] >= room or (not WORDS[word] and text != word):
                return None
            group, room = group + WORDS[word], 10 if WORDS[word] >= 20 else 1
        elif word == "hundred":
            if not 0 < group < 100:
                return None
            group, room = group * 100, 100
        else:
            if not 0 < group < 1000 or (total and SCALES[word] >= total):
                return None
            total, group, room = total + group * SCALES[word], 0, SCALES[word]
    return Fraction(total + group)
