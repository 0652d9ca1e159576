"""Which items and runs are compared."""

import numpy as np
import pytest

from milora.comparison.pairs import Graded, Untested, compare_pairs, scored_in_all

ASKED = [f"question {index}" for index in range(8)]
FIRST = [1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0]
SECOND = [0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]


def _compare(first, second, asked=ASKED):
    return compare_pairs({"A": {0: Graded(ASKED, first)}, "B": {0: Graded(asked, second)}})


def test_items_that_a_judge_excluded_are_left_out_of_both_arms():
    (whole,), _ = _compare(FIRST, SECOND)
    (tested,), untested = _compare([None, *FIRST[1:]], [*SECOND[:-1], None])
    assert (whole.difference.items, tested.difference.items, untested) == (8, 6, [])
    assert tested.difference.difference == pytest.approx(np.mean(FIRST[1:-1]) - np.mean(SECOND[1:-1]))
    assert Graded(ASKED, [None, *FIRST[1:]]).mean == pytest.approx(np.mean(FIRST[1:]))


def test_nothing_in_common_is_not_tested():
    assert _compare(FIRST[:4] + [None] * 4, [None] * 4 + SECOND[4:]) == ([], [Untested(("A", "B"), "no grades")])
    assert _compare(FIRST, SECOND, ["another", *ASKED[1:]]) == ([], [Untested(("A", "B"), "other items")])
    assert scored_in_all([Graded([], []), Graded([], [])]).shape == (2, 0)
