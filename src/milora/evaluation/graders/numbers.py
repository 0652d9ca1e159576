"""Numbers in a model's text: as the authors read them, and exactly."""

import re
import unicodedata
from fractions import Fraction
from math import isclose, isinf

from milora.evaluation.graders.grade import Grade

MARKER = "The answer is:"
NEXT_PROMPT = "### Instruction:"
DIGITS = 3000  # Python writes integers of up to 4300; a power of ten adds at most 1000

SCALES = {
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
    "k": 10**3,
}
SCALE = re.compile(rf"\s?({'|'.join(SCALES)})s?\b", re.IGNORECASE)
# A sign may come before or after the currency; thousands come in threes; then decimals, a power of ten or a fraction.
DASH = "-\u2212\u2013\u2010\u2011\ufe63\uff0d"
NUMBER = re.compile(
    rf"(?P<sign>[{DASH}]|\b(?:minus|negative)\b)? ?[$€£(]? ?(?P<minus>[{DASH}])? ?"
    r"(?P<value>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?\.\d+(?:[eE][-+]?\d{1,3})?"
    r"|(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:[eE][-+]?\d{1,3})?)"
    r"(?: ?/ ?(?P<denominator>\d+)| (?P<part>\d+ ?/ ?\d+))?",
    re.IGNORECASE,
)
# What makes another number, or none, of the one beside it: relations, roots, powers, an unknown, words.
ALTERED = re.compile(
    r"[<>≤≥≠≈±√^_\u2014]|\*\*|\bpm\b|!=|sqrt|\blog\b|n't\b|[/×÷·] ?0\b|\d ?[-+*/×÷·−–]? ?[xyi]\b"
    r"|\b(?:not|wrong|incorrect|or|least|most|than|half|third|quarter|twice|double|triple|root|squared|cubed|point"
    r"|plus|times|divided|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+teen|(?:twen|thir|for|fif"
    r"|six|seven|eigh|nine)ty)\b",
    re.IGNORECASE,
)


def official_number(completion: str, gold: str) -> Grade:
    """Grade as the authors do: a number after the last "The answer is: ", rounded; 1e-4, ×100 and ÷100 pass.

    Source: sufenlp/MiLoRA, inference/gsm8k_inference.py, lines 28-57 and 108-115, and inference/grader.py, lines 19-50.
    """
    read = _official_read(completion)
    if read is None:
        return Grade(None, 0.0)
    expected = int(gold.rpartition(MARKER)[2].strip().replace(",", ""))
    return Grade(str(read), float(is_officially_close(float(read), expected)))


def is_officially_close(found: float, expected: float) -> bool:
    """Compare numbers as the authors do: within 1e-4 of the gold answer, a hundredth of it, or a hundred times it."""
    return any(isclose(item, found, rel_tol=1e-4) for item in (expected / 100, expected, expected * 100))


def _official_read(completion: str) -> int | None:
    _, marker, stated = completion.rpartition("The answer is: ")
    match = re.search(r"[\-+]?\d*[\.,/]?\d+", stated.strip()) if marker else None
    if match is None:
        return None
    numerator, slash, denominator = match.group().partition("/")
    if slash and not numerator.strip("+-"):
        return None
    try:
        if slash and denominator != "0":
            return round(float(Fraction(match.group())))
        value = float(numerator.replace(",", ""))
    except (ArithmeticError, ValueError):
        # "12/00", and what has too many digits, ends the authors' run; here it is only wrong.
        return None
    return None if isinf(value) else round(value)


def corrected_number(completion: str, gold: str) -> Grade:
    """Grade by exact rational equality of the number after the last "The answer is:"."""
    answer = extract_answer(completion)
    is_right = answer is not None and answer == extract_answer(gold)
    return Grade(None if answer is None else str(answer), float(is_right))


def extract_answer(text: str) -> Fraction | None:
    """Return the number after the last "The answer is:", exactly; None if there is none, or more than one is meant.

    1,234,567 and -$5 and 3/4 and 2 1/2 and 3 million are read whole; 12/00, 1.234.567, 5 or 6 and 5^2 are not numbers.
    A sentence that has a second number in it is not guessed at.
    """
    _, marker, stated = text.split(NEXT_PROMPT)[0].rpartition(MARKER)
    sentence = _first_sentence(stated) if marker else ""
    *before, sentence = re.split(r"(?<!!)=", sentence)
    matches = list(NUMBER.finditer(sentence))
    digits = sum(character.isdigit() for character in sentence)
    if len(matches) != 1 or digits > DIGITS or re.search(r"[,;]|\band\b", "".join(before)):
        return None
    match = matches[0]
    rest, scale = sentence[match.end() :], 1
    while named := SCALE.match(rest):
        scale *= SCALES[named[1].lower()]
        rest = rest[named.end() :]
    left = sentence[: match.start()] + " 0" + rest
    if ALTERED.search(left) or SCALE.search(left) or any(unicodedata.category(character) == "No" for character in left):
        return None
    value = _value(match)
    return None if value is None else value * scale


def _first_sentence(text: str) -> str:
    """Undress the first sentence: no LaTeX, no emphasis, no exponents of units, single spaces."""
    line = text.strip().split("\n")[0].replace("{,}", ",").replace("**", "" if text.count("**") > 1 else "**")
    line = re.sub(r"\\[dt]?frac\s*\{(\d+)\}\s*\{(\d+)\}", r" \1/\2", line)
    line = re.sub(r"\b([kcm]?m|[a-z]{2,})(?:\^\{?[23]\}?|[²³])", r"\1", line)
    line = "".join(character for character in line if unicodedata.category(character) != "Cf")
    line = re.sub(r"\s+", " ", line.replace("\\", ""))
    return re.split(r"(?<!\bNo)(?<!\bno)[.!?](?: |$)", line)[0]


def _value(match: re.Match[str]) -> Fraction | None:
    part, below = (match["part"] or f"0/{match['denominator'] or 1}").split("/")
    if not int(below) or (match["sign"] and match["minus"]):
        return None
    value = Fraction(match["value"].replace(",", ""))
    value = value + Fraction(int(part), int(below)) if match["part"] else value / int(below)
    return -value if match["sign"] or match["minus"] else value
