"""Mathematical answers: as the authors compare them, and as math-verify does."""

import logging
import re
import warnings
from math import isclose
from tokenize import TokenError
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify
from sympy import N, simplify
from sympy.parsing.latex import parse_latex
from sympy.parsing.latex.errors import LaTeXParsingError
from sympy.parsing.sympy_parser import parse_expr
from sympy.polys.polyerrors import BasePolynomialError

from milora.evaluation.graders.grade import Grade
from milora.evaluation.graders.normal_form import normalize
from milora.evaluation.graders.numbers import MARKER, NEXT_PROMPT, is_officially_close
from milora.evaluation.graders.statement import may_be_same, numeric_sides, same_words, translate

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its clocks are off: `grade_within` has one

# What sympy raises on text that is not mathematics; the authors catch everything.
UNREADABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    TokenError,
    LaTeXParsingError,
    BasePolynomialError,
)
# parse_expr evaluates Python. Only what can be nothing else than a formula gets there.
FUNCTIONS = "sin|cos|tan|sec|csc|cot|log|ln|exp|sqrt|pi|oo"
FORMULA = re.compile(rf"(?:\b(?:{FUNCTIONS})\b|\b\d*[a-zA-Z]\b|\d+(?:\.\d+)?|\.\d+|[-+*/%(), !=<>])*")

# Beside a formula: what makes another answer of it.
ALTERING = re.compile(r"\d|\b(?:or|and|not|n't|than|least|most|times|half|hundred|thousand|\w*illion|dozen)\b")


def last_boxed(text: str) -> str | None:
    r"""Return what the last \boxed{…} or \fbox{…} contains, braces inside it included; None if there is none."""
    starts = [match.end() for match in re.finditer(r"\\(?:boxed|fbox)", text)]
    if not starts:
        return None
    rest = text[starts[-1] :]
    if not rest.startswith("{"):
        bare = re.match(r"\s+([^\s$]+)", rest)
        return bare and bare[1].rstrip(".")
    depth = 0
    for position, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:position]
    return None


def official_mathematics(completion: str, gold: str) -> Grade:
    """Grade as the authors do, without ever running a model's text: a string normal form, then sympy.

    Source: sufenlp/MiLoRA, inference/MATH_inference.py, lines 21-40, inference/util.py, lines 226-250, and
    inference/grader.py. Their exceptions count as correct, and 1e-4, ×100 and ÷100 pass.
    """
    _, marker, stated = completion.rpartition("The answer is: ")
    if not marker:
        return Grade(None, 0.0)
    stated = stated.split(".\n")[0].strip().removesuffix(".").strip()
    try:
        found, expected = normalize(stated), normalize(gold)
        correct = found == expected or _official_equal(found, expected)
    except (AssertionError, IndexError, ValueError):
        correct = _official_equal(stated, stated) or stated == gold
    return Grade(stated, float(correct))


def corrected_mathematics(completion: str, gold: str) -> Grade:
    r"""Grade by math-verify the text after the last "The answer is:", or else that in the last \boxed{}.

    Stricter than it: words are compared as words, decimals exactly, and brackets, bases and repeated items must agree.
    """
    answer = _stated(completion.split(NEXT_PROMPT)[0])
    if not answer:
        return Grade(None, 0.0)
    in_words = same_words(answer, gold)
    found, expected = translate(answer), translate(gold)
    if in_words is not None or found is None or expected is None:
        return Grade(answer, float(in_words or answer == gold))
    if found == expected:
        return Grade(answer, 1.0)
    if not may_be_same(found, expected):
        return Grade(answer, 0.0)
    sides = numeric_sides(found) if "=" not in expected else []
    return Grade(answer, float(all(_same(side, expected) for side in (found, *sides))))


def _same(found: str, expected: str) -> bool:
    return bool(verify(_parse(expected), _parse(found), timeout_seconds=None))


def _stated(text: str) -> str | None:
    _, marker, stated = text.rpartition(MARKER)
    if not marker:
        return last_boxed(text)
    stated = stated.strip().split(".\n")[0].split("\n\n")[0].strip()
    if stated.count("boxed") == 1:
        whole = last_boxed(stated)
        if whole is not None and not re.search(r"\d", re.sub(r"\\boxed.*", "", stated)):
            return whole
    stated = stated.removesuffix(".").replace("\\$", "").strip()
    inside = re.findall(r"\$([^$]+)\$", stated)
    outside = re.sub(r"\$[^$]+\$", "", stated)
    if len(inside) == 1 and not ALTERING.search(outside):
        stated = str(inside[0])
    return stated.replace("$", "").strip()


def _parse(text: str) -> list[Any]:
    # Without its second way of reading, which takes any number out of text that is not LaTeX.
    parsed: list[Any] = parse(f"${text}$", extraction_config=[LatexExtractionConfig()], parsing_timeout=None)
    return parsed


def _official_equal(found: str, expected: str) -> bool:
    numbers = _float(found), _float(expected)
    if numbers[0] is not None and numbers[1] is not None:
        return is_officially_close(numbers[0], numbers[1])
    if not found:
        return False
    found, expected = found.strip(), expected.strip()
    bare = found, expected
    brackets = found[:1] + found[-1:]
    if (brackets == "[]" and expected[:1] != "(") or (brackets == "()" and expected[:1] != "["):
        bare = found.strip("[]()"), expected.strip("[]()")
    if len({re.sub(r"[{}()]", "", text) for text in bare}) == 1:
        return True
    if brackets in ("[]", "()") and expected[:1] + expected[-1:] == brackets:
        parts = found[1:-1].split(","), expected[1:-1].split(",")
        if len(parts[0]) == len(parts[1]) and all(map(_official_equal, *parts)):
            return True
    return _symbolically_equal(_official_parse(found), _official_parse(expected))


def _float(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


def _official_parse(text: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sympy's own, about text it cannot make sense of
        try:
            return parse_latex(text)
        except UNREADABLE:
            pass
        try:
            return parse_expr(text) if FORMULA.fullmatch(text) else None
        except UNREADABLE:
            return None


def _symbolically_equal(found: Any, expected: Any) -> bool:
    if found is None or expected is None:
        return False
    try:
        if simplify(found - expected) == 0:
            return True
    except UNREADABLE:
        pass
    try:
        return isclose(N(found), N(expected), rel_tol=1e-3)
    except UNREADABLE:
        return False
