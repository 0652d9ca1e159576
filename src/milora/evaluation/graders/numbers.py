"""Numbers in a model's text: as the authors read them, and exactly."""

import re
from fractions import Fraction
from math import isclose, isinf

from milora.evaluation.graders.doubt import is_doubtful
from milora.evaluation.graders.grade import Grade
from milora.evaluation.graders.plain import first_sentence
from milora.evaluation.graders.quantity import SCALE, Quantity, find_quantities

MARKER = "The answer is:"
NEXT_PROMPT = "### Instruction:"
DIGITS = 3000  # Python writes integers of up to 4300; a power of ten adds at most 1000
# A reason after the answer; its last equation must agree with the answer.
REASON = re.compile(r",? ?\(?\b(?:because|since)\b(?P<because>.*)|,? ?\((?P<inside>[^()]*=[^()]*)\)(?= ?\W*$)")


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
    """Grade by exact rational equality of the number after the last "The answer is:".

    "7 dozen" is 84. It is 7 only where the gold solution's own last 7 is "7 dozen": then dozens are the gold's unit,
    only the same scale word names it, and 84 dozen is not answered by 7 dozen. A gold without a scale word has none.
    """
    answer, expected = extract_answer(completion), extract_answer(gold)
    if answer is None or expected is None or expected.value is None:
        return Grade(None, 0.0)
    unit = _unit(gold, expected)
    found = answer.number if answer.scale == unit else answer.value
    is_right = found == expected.value and (answer.scale == 1 or unit in (1, answer.scale))
    return Grade(str(found), float(is_right))


def _unit(gold: str, expected: Quantity) -> int:
    """What the scale words multiply the gold answer by, where the gold solution states it last; 1 without any."""
    solution = gold.rpartition(MARKER)[0]
    same = [item for item in find_quantities(solution) if item.number == expected.number and not item.in_words]
    return same[-1].scale if same and expected.scale == 1 else 1


def extract_answer(text: str) -> Quantity | None:
    """Return the number after the last "The answer is:", exactly; None if there is none, or more than one is meant.

    An answer is the first sentence: an equation's last side, or words around one number. The same number may follow in
    parentheses, in words or with another scale: 12 (twelve). A reason may follow that: because …, or (9 * 2 = 18).
    1,234,567 and -$5 and 3/4 and 2 1/2 and 3 million are read whole; 12/00, 1.234.567, 5 or 6 and 5^2 are not numbers.
    A sentence with a second number in it is not guessed at, nor one with a word of doubt, such as "about".
    """
    _, marker, stated = text.split(NEXT_PROMPT)[0].rpartition(MARKER)
    sentence = first_sentence(stated) if marker else ""
    if sum(character.isdigit() for character in sentence) > DIGITS:
        return None
    reason = REASON.search(sentence)
    answer = _read(sentence[: reason.start()] if reason else sentence)
    if answer is None and reason and reason["inside"] is None:
        return _read(sentence)  # "because 9 * 2 = 18"
    if answer is None or reason is None:
        return answer
    why = reason["because"] or reason["inside"]
    if is_doubtful(_words(why)):
        return None
    last = _sole(why.rpartition("=")[2].rstrip(") ")) if "=" in why else answer
    return answer if last is not None and last.value == answer.value else None


def _read(text: str) -> Quantity | None:
    """Read the last side of an equation, or a text without one."""
    *before, side = re.split(r"(?<!!)=", text)
    # "In total, 4 + 6 = 10" is one equation, "x = 5, y = 72" are two.
    if re.search(r"[=\d].*(?:[,;]|\band\b)|[<>~/!]$", "=".join(before)) or is_doubtful(_words(" ".join(before))):
        return None
    answer = _sole(side)
    known = [_sole(item) for item in before if not re.search("[a-z]", item)]
    return None if any(item and answer and item.value != answer.value for item in known) else answer


def _words(equation: str) -> str:
    return re.sub(r"[^a-z'’]+", " ", equation, flags=re.IGNORECASE)


def _sole(text: str) -> Quantity | None:
    """The one number of a text, if nothing else in the text changes it."""
    text = _without_repetition(text)
    quantities = list(find_quantities(text))
    if len(quantities) != 1 or quantities[0].value is None:
        return None
    answer = quantities[0]
    before, after = text[: answer.start], text[answer.end :]
    # "One" is also a pronoun: in words, a number opens the answer, and "one of them" is not a number.
    if answer.in_words and (re.search(r"\w", before) or re.match(r" of\b", after)):
        return None
    left = before + (re.sub(r"[^ (]", "", text[answer.start : answer.end])[:2] or " ") + "0" + after
    return None if is_doubtful(left) or SCALE.search(left) else answer


def _without_repetition(text: str) -> str:
    """Drop the second of "12 (twelve)", and of "3 million (3,000,000)"; 5 (5) may be a product and stays."""
    pair = list(find_quantities(text))
    if len(pair) != 2 or pair[0].value != pair[1].value:
        return text
    first, second = pair
    opening, closing = re.search(r"\(", text[first.end : second.end]), re.match(r"(?: [a-z]+)?\)", text[second.end :])
    between = text[first.end : second.end].partition("(")[0]
    if not opening or not closing or not re.fullmatch(r" ?[a-z]* ?", between):
        return text
    if not (between.strip() or first.in_words or second.in_words or first.scale > 1 or second.scale > 1):
        return text
    number = (
        text[: first.end] if not first.in_words else text[: first.start] + text[second.start : second.end].lstrip(" (")
    )
    return re.sub(" +", " ", number + between + text[second.end + closing.end() :])
