"""The embedded set says what it promises."""

import hashlib
import json
import re
from fractions import Fraction
from itertools import combinations

import pytest

from milora import MiloraError
from milora.data.arithmetic import ITEMS, NAMES, write_problems

SPLITS = ("train", "validation", "test")
EQUATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)\.")


def _wording(question: str) -> set[str]:
    masked = re.sub(r"\d+", "#", question)
    for word in (*NAMES, *ITEMS):
        masked = masked.replace(word, "_")
    return {sentence for sentence in re.findall(r"[^.?]+[.?]", masked)}


@pytest.mark.parametrize("split", SPLITS)
def test_every_answer_is_right_and_asked_for(split):
    for row in write_problems(split, 800):
        steps = [(int(a), op, int(b), int(c)) for a, op, b, c in EQUATION.findall(row.answer)]
        left, *_ = steps[0]
        asked = [int(number) for number in re.findall(r"\d+", row.question)]
        assert asked == [left, *(right for _, _, right, _ in steps)]
        value = Fraction(left)
        for first, operation, right, result in steps:
            assert value == first
            value = {"+": value + right, "-": value - right, "*": value * right, "/": value / right}[operation]
            assert value == result >= 2
        assert row.answer.endswith(f"The answer is: {value}")


def test_splits_share_no_wording_and_no_numbers():
    rows = {split: write_problems(split, 1500) for split in SPLITS}
    for one, other in combinations(SPLITS, 2):
        wording = [set().union(*(_wording(row.question) for row in rows[split])) for split in (one, other)]
        assert not wording[0] & wording[1]
        numbers = [{step[:3] for row in rows[split] for step in EQUATION.findall(row.answer)} for split in (one, other)]
        assert not numbers[0] & numbers[1]


def test_all_operations_and_both_lengths_occur_and_nothing_twice():
    rows = write_problems("test", 400)
    first = [EQUATION.findall(row.answer)[0][1] for row in rows]
    assert all(first.count(operation) > 60 for operation in "+-*/")
    assert sum(len(EQUATION.findall(row.answer)) == 2 for row in rows) == 200
    assert len({row.question for row in rows}) == 400
    assert not any("  " in row.question for row in rows)


def test_the_same_rows_on_every_machine():
    digest = hashlib.sha256(
        json.dumps([{"question": row.question, "answer": row.answer} for row in write_problems("train", 50)]).encode()
    ).hexdigest()
    assert digest == "9522b0990ed7a3e18613c110d9b8e062a9d33907bbc45015aef2e714869fa55e"
    assert write_problems("train", 50) == write_problems("train", 60)[:50]
    assert write_problems("train", 50, seed=1) != write_problems("train", 50)


@pytest.mark.parametrize(
    "arguments",
    [("train", -1), ("dev", 1), ("test", 10**6, 0, (1,)), ("train", 1, 0, ()), ("train", 1, 0, (3,))],
    ids=str,
)
def test_refusals(arguments):
    split, count, *rest = arguments
    options = dict(zip(("seed", "steps"), rest, strict=False))
    with pytest.raises(MiloraError):
        write_problems(split, count, **options)
    assert write_problems("train", 0) == []
