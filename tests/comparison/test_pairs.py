"""Which items and runs are compared."""

import numpy as np
import pytest

from milora.comparison.pairs import Graded, Untested, compare_pairs, scored_in_all
from milora.comparison.results import read_items
from milora.evaluation.graders.grade import Grade
from milora.evaluation.scores import Metric, Sample, Scores, Settings, write_scores
from milora.run.directory import ScoreFolder
from milora.run.environment import describe_environment

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


def test_a_group_with_a_headline_that_is_not_a_mean_of_grades_has_no_items(tmp_path):
    """An average of seven tasks must not be tested on the items of six."""
    for name, primary in (("gqa", "accuracy"), ("pope", "f1")):
        settings = Settings("m", "1")
        scores = Scores(name, "base", 2, primary, {primary: Metric(0.5, None)}, settings, describe_environment())
        samples = [Sample(f"q{score}", "", "", {"accuracy": Grade(None, score)}) for score in (0.0, 1.0)]
        write_scores(ScoreFolder(tmp_path / name), scores, samples)
    gqa, pope = ScoreFolder(tmp_path / "gqa"), ScoreFolder(tmp_path / "pope")
    assert read_items([gqa]) == Graded(["q0.0", "q1.0"], [0.0, 1.0])
    assert read_items([pope]) == read_items([gqa, pope]) == Graded([], [])
