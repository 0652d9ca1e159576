"""Every grader against tables of nasty completions, in both forms, and against the sets' own solutions."""

from pathlib import Path

import pytest

from milora.data.rows import load_rows
from milora.evaluation.graders.choices import corrected_choice, official_choice
from milora.evaluation.graders.grade import Grade, grade_within
from milora.evaluation.graders.mathematics import corrected_mathematics, last_boxed, official_mathematics
from milora.evaluation.graders.numbers import corrected_number, official_number
from tests.evaluation import table_choices_more, table_numbers_more
from tests.evaluation.table_choices import CHOICES
from tests.evaluation.table_mathematics import MATHEMATICS
from tests.evaluation.table_numbers import NUMBERS

SECONDS = 10.0  # as benchmarks grant, on a busy machine too


@pytest.mark.parametrize(("completion", "gold", "official", "corrected"), NUMBERS, ids=range(len(NUMBERS)))
def test_numbers(completion, gold, official, corrected):
    gold = f"2 + 2 = 5.\nThe answer is: {gold}"
    assert official_number(completion, gold).score == official
    assert corrected_number(completion, gold).score == corrected


@pytest.mark.parametrize("words", CHOICES)
def test_choices(words):
    for completion, gold, official, corrected in CHOICES[words]:
        gold = f"the correct answer is {gold}"
        assert official_choice(words)(completion, gold).score == official, completion
        assert corrected_choice(words)(completion, gold).score == corrected, completion


@pytest.mark.slow
@pytest.mark.parametrize(("grader", "column"), [(official_mathematics, 2), (corrected_mathematics, 3)])
def test_mathematics(grader, column):
    grades = grade_within(grader, [row[:2] for row in MATHEMATICS], SECONDS)
    wrong = [(row, grade) for row, grade in zip(MATHEMATICS, grades, strict=True) if grade.score != row[column]]
    assert not wrong
    assert not Path("/tmp/milora-was-here").exists()


def _is_right_number(stated, gold):
    gold = gold if "The answer is:" in gold else f"2 + 2 = 5.\nThe answer is: {gold}"
    return corrected_number(f"The answer is: {stated}", gold).score


def _is_right_choice(completion, words, gold):
    return corrected_choice(words)(completion, f"the correct answer is {gold}").score


@pytest.mark.parametrize("gold", table_numbers_more.WRONG)
def test_no_near_miss_counts_as_the_right_number(gold):
    assert not [text for text in table_numbers_more.WRONG[gold] if _is_right_number(text, gold)]


@pytest.mark.parametrize(("words", "gold"), table_choices_more.WRONG)
def test_no_near_miss_counts_as_the_right_choice(words, gold):
    assert not [text for text in table_choices_more.WRONG[words, gold] if _is_right_choice(text, words, gold)]


def test_right_answers_are_accepted_however_they_are_phrased():
    numbers = [(text, gold) for gold, texts in table_numbers_more.RIGHT.items() for text in texts]
    refused = [row for row in numbers if not _is_right_number(*row)]
    assert [text for text, _ in refused] == ["7 (dozen)"]
    choices = [(text, *key) for key, texts in table_choices_more.RIGHT.items() for text in texts]
    assert not [row for row in choices if not _is_right_choice(*row)]


def test_the_corrected_grader_is_the_stricter_one_where_it_matters():
    """Of the wrong answers, the official graders count many as right, and the corrected ones none."""
    numbers = [(row[0], f"The answer is: {row[1]}") for row in NUMBERS if not row[3]]
    assert sum(official_number(*row).score for row in numbers) > 100
    assert sum(corrected_number(*row).score for row in numbers) == 0
    for words, rows in CHOICES.items():
        choices = [row[:2] for row in rows if not row[3]]
        assert sum(official_choice(words)(*row).score for row in choices) > 0
        assert sum(corrected_choice(words)(*row).score for row in choices) == 0


def _never_ends(completion, gold):
    while completion == "hang":
        pass
    return Grade(completion, 1.0)


def _takes_all_memory(completion, gold):
    if completion == "eat":
        bytearray(2**40)
    return Grade(completion, 1.0)


@pytest.mark.slow
def test_limits_cost_one_row_and_no_other():
    rows = [("a", ""), ("hang", ""), ("b", "")]
    assert [grade.score for grade in grade_within(_never_ends, rows, 1.0)] == [True, False, True]
    rows = [("a", ""), ("eat", ""), ("b", "")]
    assert [grade.score for grade in grade_within(_takes_all_memory, rows, 10.0)] == [True, False, True]


BOXES = [
    (r"\boxed{7}", "7"),
    (r"a \boxed{1} b \boxed{\frac{1}{2}} c", r"\frac{1}{2}"),
    (r"\boxed{\{1,2\}}", r"\{1,2\}"),
    (r"\boxed 7.", "7"),
    (r"\fbox{x}", "x"),
    (r"\boxed{7", None),
    ("7", None),
    ("", None),
    (r"\boxed{}", ""),
]


@pytest.mark.parametrize(("text", "inside"), BOXES)
def test_last_boxed(text, inside):
    assert last_boxed(text) == inside


def test_golds_of_gsm8k_and_of_the_commonsense_sets_are_right(data_dir):
    rows = load_rows("gsm8k", "test", data_dir)
    assert all(corrected_number(row.answer, row.answer).score for row in rows)
    words = tuple(f"answer{i}" for i in range(1, 6))
    for row in load_rows("arc_challenge", "test", data_dir):
        assert corrected_choice(words)(row.answer, row.answer).score


def test_golds_of_math_are_right(data_dir):
    rows = load_rows("math", "test", data_dir)[::25]
    pairs = [(f"The answer is: ${gold}$.", gold) for gold in (last_boxed(row.answer) for row in rows)]
    grades = grade_within(corrected_mathematics, pairs, SECONDS)
    refused = [gold for (_, gold), grade in zip(pairs, grades, strict=True) if not grade.score]
    assert len(pairs) == 200 and not refused, refused
