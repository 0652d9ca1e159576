"""Numbers in a model's text: as the authors read them, and exactly."""

import re
from fractions import Fraction
from math import isclose, isinf

from milora.evaluation.graders.grade import Grade

MARKER = "The answer is:"
NEXT_PROMPT = "### Instruction:"
DIGITS = 4000  # Python reads integers up to 4300

SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "dozen": 12, "k": 10**3}
# A sign may stand before or after the currency; thousands come in threes; then decimals, a power of ten or a fraction.
NUMBER = re.compile(
    r"(?P<sign>[-−–]|\b(?:minus|negative)\b)?\s*[$€£(]?\s*(?P<minus>[-−–]?)\s*"
    r"(?P<value>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?\.\d+(?:[eE][-+]?\d{1,3})?"
    r"|(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:[eE][-+]?\d{1,3})?)"
    r"(?:\s*/\s*(?P<denominator>\d+)|\s+(?P<part>\d+\s*/\s*\d+))?"
)
# What makes of the number before it a part of something else: another digit group, an operation, an alternative.
CONTINUES = re.compile(r"\s*(?:[.,:]?\s?\d|[-+*/^×÷·–]\s*[\d(]|\s(?:x|or|and|to)\s+[$-]?\d|\()", re.IGNORECASE)


def official_number(completion: str, gold: str) -> Grade:
    """Grade as the authors do: a number after the last "The answer is: ", rounded; 1e-4, ×100 and ÷100 pass.

    Source: sufenlp/MiLoRA, inference/gsm8k_inference.py, lines 28-57 and 108-115, and inference/grader.py, lines 19-50.
    """
    read = _official_read(completion)
    if read is None:
        return Grade(None, False)
    expected = int(gold.rpartition(MARKER)[2].strip().replace(",", ""))
    close = any(isclose(item, float(read), rel_tol=1e-4) for item in (expected / 100, expected, expected * 100))
    return Grade(str(read), close)


def _official_read(completion: str) -> int | None:
    _, marker, stated = completion.rpartition("The answer is: ")
    match = re.search(r"[\-+]?\d*[\.,/]?\d+", stated.strip()) if marker else None
    if match is None:
        return None
    numerator, slash, denominator = match.group().partition("/")
    if slash and not numerator.strip("+-"):
        return None
    # "12/00" ends the authors' run with a ZeroDivisionError; here it is only wrong.
    if slash and denominator != "0" and not int(denominator):
        return None
    value = float(numerator.replace(",", ""))
    if slash and denominator != "0":
        value /= int(denominator)
    return None if isinf(value) else round(value)


def corrected_number(completion: str, gold: str) -> Grade:
    """Grade by exact rational equality of the number after the last "The answer is:"."""
    answer = extract_answer(completion)
    return Grade(None if answer is None else str(answer), answer is not None and answer == extract_answer(gold))


def extract_answer(text: str) -> Fraction | None:
    """Return the number after the last "The answer is:", exactly; None where there is none, or more than one is meant.

    1,234,567 and -$5 and 3/4 and 2 1/2 and 3 million are read whole; 12/00, 1.234.567, 5 or 6 and 5^2 are no numbers.
    """
    _, marker, stated = text.split(NEXT_PROMPT)[0].rpartition(MARKER)
    stated = stated.strip().split("\n")[0].replace("{,}", ",").replace("\\", "").rpartition("=")[2]
    match = NUMBER.search(stated) if marker else None
    if match is None or len(match["value"]) > DIGITS or re.search(r"\bnot\b", stated[: match.start()]):
        return None
    rest = stated[match.end() :]
    if CONTINUES.match(rest) or re.search(r"(?:\d[.,]?\s?|/)$", stated[: match.start()]):
        return None
    value = Fraction(match["value"].replace(",", ""))
    if match["denominator"]:
        if not int(match["denominator"]):
            return None
        value /= int(match["denominator"])
    elif match["part"]:
        above, below = map(int, match["part"].split("/"))
        if not below:
            return None
        value += Fraction(above, below)
    scale = re.match(r"\s*([a-z]+)\b", rest, re.IGNORECASE)
    value *= SCALES.get(scale[1].lower(), 1) if scale else 1
    return -value if match["sign"] or match["minus"] else value
