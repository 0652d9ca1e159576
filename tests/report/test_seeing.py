"""What a page says of a model that was also asked without its pictures."""

from milora.report.samples import Answer, Reading
from milora.report.seeing import say_seeing


def read(task, verdicts):
    return [
        Reading(task, number, "which?", "1", [Answer("base", "", False), Answer("trained", "", right)])
        for number, right in enumerate(verdicts, 1)
    ]


def test_a_model_that_uses_its_pictures_and_one_that_does_not():
    readings = {
        "digits": read("digits", [True] * 8 + [False] * 2),
        "digits_blind": read("digits_blind", [False] * 9 + [True]),
        "colors": read("colors", [True] * 7 + [False] * 3),
        "colors_blind": read("colors_blind", [True] * 7 + [None] + [False] * 2),
        "gsm8k": read("gsm8k", [True]),
    }
    assert say_seeing(readings) == [
        "digits: 8 of 10 right with the pictures, 1 with gray ones in their place; 8 are right only with the picture, "
        "1 only without (p = 0.039).",
        "colors: 7 of 9 right with the pictures, 7 with gray ones in their place; that cannot be told from chance "
        "(p = 1.000), so nothing shows that it uses the pictures.",
    ]
