"""Reading answers out of completions, nasty ones."""

from fractions import Fraction

import pytest

from milora.evaluation.numbers import extract_answer
from milora.evaluation.tasks import BENCHMARKS
from milora.evaluation.tasks.arc_easy import extract_choice

NUMBERS = [
    ("The answer is: 72", 72),
    ("The answer is:72", 72),
    ("2 + 2 = 4. The answer is: 4 apples.", 4),
    ("The answer is: 5. No. The answer is: 6", 6),
    ("The answer is: 1,234,567", 1234567),
    ("The answer is: 1,234,567.50", Fraction("1234567.5")),
    ("The answer is: -5", -5),
    ("The answer is: −5", -5),
    ("The answer is: -$5", -5),
    ("The answer is: $-5", -5),
    ("The answer is: $1,000.00", 1000),
    ("The answer is: 17.6", Fraction("17.6")),
    ("The answer is: 3/4", Fraction(3, 4)),
    ("The answer is: 3 / 4", Fraction(3, 4)),
    ("The answer is: 0.75", Fraction(3, 4)),
    ("The answer is: 12/00", None),
    ("The answer is: 72.", 72),
    ("The answer is: about 9 or 10", 9),
    ("The answer is: 10000000000000000000000000001", 10**28 + 1),
    ("The answer is: seven", None),
    ("The answer is:", None),
    ("The answer is: \n8", None),
    ("72", None),
    ("", None),
    ("the answer is: 72", None),
    ("The answer is: 1,23", 1),
    ("The answer is: 007", 7),
]


@pytest.mark.parametrize(("text", "expected"), NUMBERS, ids=[row[0] for row in NUMBERS])
def test_numbers(text, expected):
    assert extract_answer(text) == expected


CHOICES = [
    ("the correct answer is answer3", "answer3"),
    ("Answer2", "answer2"),
    ("not answer1 but answer4.", "answer4"),
    ("answer12", None),
    ("answer6", None),
    ("myanswer1", None),
    ("1", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "expected"), CHOICES, ids=[row[0] for row in CHOICES])
def test_choices(text, expected):
    assert extract_choice(text) == expected


@pytest.mark.parametrize(
    ("completion", "gold", "correct"),
    [
        ("The answer is: 0.5", "The answer is: 1/2", True),
        ("no idea", "none", False),
        ("The answer is: 17.6", "The answer is: 18", False),
    ],
)  # fmt: skip
def test_no_answer_never_counts(completion, gold, correct):
    assert BENCHMARKS["gsm8k"].is_correct(completion, gold) is correct
