"""Intervals of scores, against scipy and against what cannot be known."""

import pytest
from scipy import stats

from milora.evaluation.intervals import interval_of, interval_of_average, wilson
from milora.evaluation.scores import Metric, Scores, Settings, average, format_metric, measure
from tests.made_runs import ENVIRONMENT


@pytest.mark.parametrize("count", [1, 2, 3, 80])
def test_wilsons_is_scipys_and_ends_at_0_and_1(count):
    for right in range(count + 1):
        expected = stats.binomtest(right, count).proportion_ci(method="wilson")
        found = interval_of([1] * right + [0] * (count - right))
        assert found == pytest.approx((expected.low, expected.high), abs=1e-12)
        low, high = found
        assert 0 <= low <= right / count <= high <= 1 and low < high


def test_other_grades_have_students_and_equal_ones_none():
    grades = [0.5, 0.25, 1.0]
    expected = stats.t.interval(0.95, 2, loc=sum(grades) / 3, scale=stats.sem(grades))
    assert interval_of(grades) == pytest.approx(expected)
    assert interval_of([0.5, 0.5]) is None and interval_of([0.5]) is None


def test_an_average_of_nothing_right_is_not_certain():
    low, high = interval_of_average([0.0, 0.0], [wilson(0, 3), wilson(0, 3)])
    assert low == 0 and high == pytest.approx(wilson(0, 3)[1] / 2**0.5)
    parts = [
        Scores(name, "base", 3, "grade", {"grade": measure([0, 0, 0])}, Settings("", "1"), ENVIRONMENT) for name in "ab"
    ]
    assert average("both", parts).headline.interval == pytest.approx((low, high))
    unknown = Scores("c", "base", 3, "grade", {"grade": Metric(0.5, None)}, Settings("", "1"), ENVIRONMENT)
    assert average("all", [*parts, unknown]).headline.interval is None


def test_how_a_metric_reads():
    assert format_metric(measure([1] * 30 + [0] * 50), "share") == "37.5 % (27.7 … 48.5)"
    assert format_metric(measure([0.0, 0.0]), "share") == "0.0 % (0.0 … 65.8)"
    assert format_metric(measure([4.0, 5.0, 6.0]), "nats") == "5.000 (2.516 … 7.484)"
    assert format_metric(Metric(0.5, None), "share") == "50.0 %"
