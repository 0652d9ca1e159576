"""The intervals and tests, against scipy and against simulated data whose answer is known."""

import itertools

import numpy as np
import pytest
from scipy import stats

from milora.comparison import statistics
from milora.comparison.statistics import compare_pair, correct_for_many, interval_of_mean, interval_of_scores

ARMS = ("one", "other")


@pytest.fixture
def unflipped(monkeypatch):
    """Without the sign flips, for tests of many pairs that look at the other test alone."""
    monkeypatch.setattr(statistics, "_flip_signs", lambda differences, seed: 1.0)


def draw(rng, seeds=3, items=40, *, shift=0.0, by_item=1.0, by_seed=0.0, rest=0.5):
    """Differences (seeds, items) with crossed random effects, around a known mean."""
    return (
        shift
        + by_item * rng.normal(size=(1, items))
        + by_seed * rng.normal(size=(seeds, 1))
        + rest * rng.normal(size=(seeds, items))
    )


def test_interval_is_scipys_and_one_value_has_none():
    values = [0.1, 0.4, 0.35, 0.2]
    found = interval_of_mean(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert interval_of_mean([0.3]).low is None and interval_of_mean([0.3, 0.3]).low is None


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 5])
def test_interval_covers_the_true_mean_as_often_as_it_says(count):
    rng = np.random.default_rng(count)
    found = [interval_of_mean(list(rng.normal(7, 2, count))) for _ in range(2000)]
    assert np.mean([one.low < 7 < one.high for one in found]) == pytest.approx(0.95, abs=0.015)  # 3 standard errors


def test_sign_flips_equal_their_full_enumeration():
    first, second = np.array([[1, 1, 1, 0, 1, 1, 0, 1.0]]), np.array([[0, 1, 0, 0, 0, 1, 1, 0.0]])
    differences = (first - second)[0]
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=8)]
    exact = np.mean(np.array(sums) >= abs(differences.sum()))
    assert compare_pair(ARMS, first, second).p_items == pytest.approx(exact)


def test_without_spread_over_seeds_the_crossed_test_is_the_paired_t_test_over_items():
    differences = np.random.default_rng(0).normal(0.3, 1, size=(1, 30)).repeat(4, axis=0)
    found = compare_pair(ARMS, differences, np.zeros_like(differences))
    assert found.p_seeds == pytest.approx(stats.ttest_1samp(differences[0], 0).pvalue)


def test_without_spread_over_items_the_crossed_test_is_the_paired_t_test_over_seeds():
    differences = np.random.default_rng(1).normal(0.3, 1, size=(5, 1)).repeat(30, axis=1)
    found = compare_pair(ARMS, differences, np.zeros_like(differences))
    expected = stats.ttest_1samp(differences[:, 0], 0)
    assert found.p_seeds == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))


@pytest.mark.parametrize("by_seed", [0.0, 0.3, 1.0])
def test_new_seeds_at_no_difference_raise_no_more_false_alarms_than_stated(by_seed, unflipped):
    rng = np.random.default_rng(2)
    found = [compare_pair(ARMS, draw(rng, by_seed=by_seed), np.zeros((3, 40))) for _ in range(400)]
    assert np.mean([one.p_seeds < 0.05 for one in found]) <= 0.05 + 0.033  # 3 standard errors
    assert np.mean([one.low < 0 < one.high for one in found]) >= 0.95 - 0.033


@pytest.mark.slow
def test_sign_flips_at_no_difference_hold_for_the_same_models_and_not_for_new_seeds():
    rng = np.random.default_rng(3)

    def alarms(by_seed, pairs):
        found = [compare_pair(ARMS, draw(rng, by_seed=by_seed), np.zeros((3, 40))) for _ in range(pairs)]
        return np.mean([one.p_items < 0.05 for one in found])

    assert alarms(0.0, 400) == pytest.approx(0.05, abs=0.033)
    assert alarms(1.0, 50) > 0.2  # why the report has two columns


def test_the_showable_difference_is_found_four_times_in_five(unflipped):
    rng = np.random.default_rng(4)
    showable = np.mean([compare_pair(ARMS, draw(rng, 6), np.zeros((6, 40))).showable for _ in range(50)])
    found = [compare_pair(ARMS, draw(rng, 6, shift=showable), np.zeros((6, 40))).p_seeds < 0.05 for _ in range(300)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.1)


def test_where_nothing_varies_there_is_no_test_for_new_seeds_and_no_interval():
    same = np.ones((2, 5))
    for other in (same, np.zeros((2, 5))):
        found = compare_pair(ARMS, same, other)
        assert (found.p_seeds, found.low, found.high, found.showable) == (None, None, None, None)
    assert compare_pair(ARMS, same, same).p_items == 1.0
    assert compare_pair(ARMS, same, np.zeros((2, 5))).p_items == pytest.approx(2 / 2**5)
    assert compare_pair(ARMS, same[:1, :1], np.zeros((1, 1))).p_items == 1.0
    assert compare_pair(ARMS, same[:1], same[:1]).p_seeds is None


def test_one_seeds_interval_is_wilsons_and_is_honest_at_both_ends():
    for right, count in ((0, 3), (3, 3), (30, 80)):
        found = interval_of_scores(np.array([[1.0] * right + [0.0] * (count - right)]))
        expected = stats.binomtest(right, count).proportion_ci(method="wilson")
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    for seeds in (2, 5):  # which say nothing more where nothing varies
        assert interval_of_scores(np.zeros((seeds, 3))).high == pytest.approx(0.5615, abs=1e-4)


@pytest.mark.parametrize(
    ("seeds", "items", "by_seed"), [(1, 40, 0), (2, 40, 0), (3, 40, 0), (3, 40, 0.5), (5, 99, 0.5)]
)
@pytest.mark.parametrize("level", [-3.0, 0.0])
def test_intervals_of_scores_cover_the_true_share_as_often_as_they_say(seeds, items, by_seed, level):
    assert _coverage(seeds, items, by_seed, level) >= 0.95 - 0.038  # 3 standard errors


def test_two_seeds_that_differ_much_are_covered_less_often():
    assert 0.84 <= _coverage(2, 40, 0.5, 0.0) < 0.95  # as docs/comparisons.md says


def _coverage(seeds, items, by_seed, level):
    rng = np.random.default_rng(seeds)
    true = stats.norm.cdf(level / np.sqrt(2 + by_seed**2))
    drawn = (level + draw(rng, seeds, items, by_seed=by_seed, rest=1.0) > 0 for _ in range(300))
    found = [interval_of_scores(verdicts * 1.0) for verdicts in drawn]
    return np.mean([one.low <= true <= one.high for one in found])


def test_holm_steps_down_and_never_decreases():
    assert correct_for_many([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert correct_for_many([0.6, 0.9]) == pytest.approx([1.0, 1.0])
    assert correct_for_many([]) == []


@pytest.mark.slow
def test_holm_keeps_the_chance_of_any_false_alarm():
    rng = np.random.default_rng(5)
    assert np.mean([min(correct_for_many(list(rng.uniform(size=6)))) < 0.05 for _ in range(2000)]) <= 0.05 + 0.015
