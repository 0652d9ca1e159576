"""FollowBench's judge: it sees how the prompt grew, and says which of the added constraints the answer satisfies.

The prompt and its reading are those of code/gpt4_based_evaluation.py at 6278f4c.
"""

import ast
import json
import re

from milora.data.conversation import Conversation
from milora.evaluation.graders.follow_rules import grade_by_rule
from milora.evaluation.graders.grade import Grade
from milora.evaluation.judges.fence import NOTICE, delimiters_of, imitates, quote
from milora.evaluation.judges.judge import Answer, Judge, Question
from milora.method.options import JudgeForm

HARD, SOFT = "hsr", "ssr"  # hard: all constraints are satisfied; soft: the share of them that is
MAX_TOKENS = 1024
# What the prompt calls the constraints of each category.
KINDS = {
    "content": "content constraint",
    "situation": "situation constraint (information to describe a specific situation/background)",
    "style": "style constraint",
    "format": "format constraint",
    "mixed": "constraint",
}
OTHER_WORDS_FOR_NO = ("NO", "PARTIAL", "MAYBE", "UNKNOWN", "N/A")
DELIMITERS = delimiters_of(
    "#Initial Instruction#\n#System#",
    quotes=("#Initial Instruction", "#Answer of Initial Instruction", "#System#", "['YES", '["YES'),
    verdicts=("YES",),
)


def grade_by_rules(completions: list[str], rows: list[Conversation]) -> dict[str, list[Grade]]:
    """Grade a category that needs no judge."""
    verdicts = [_apply_rule(completion, row) for completion, row in zip(completions, rows, strict=True)]
    grades = [Grade("by rule", float(bool(verdict))) for verdict in verdicts]
    return {HARD: grades, SOFT: list(grades)}


def judge_constraints(completions: list[str], rows: list[Conversation], judge: Judge) -> dict[str, list[Grade]]:
    """Grade by rule what FollowBench grades by rule, and ask the judge about the rest.

    An empty completion satisfies nothing, and the judge is not asked about it.
    """
    ruled = grade_by_rules(completions, rows)
    asked = [
        index
        for index, (completion, row) in enumerate(zip(completions, rows, strict=True))
        if completion.strip() and _apply_rule(completion, row) is None
    ]
    questions = [write_question(rows[index], completions[index], judge.section.form) for index in asked]
    for index, answer in zip(asked, judge.ask(questions), strict=True):
        flagged = imitates(completions[index], DELIMITERS)
        ruled[HARD][index], ruled[SOFT][index] = _read_grades(answer, int(rows[index].fields["level"]), flagged)
    return ruled


def write_question(row: Conversation, completion: str, form: JudgeForm) -> Question:
    """Return what the judge is asked about a completion; the corrected form quotes one that imitates the prompt."""
    if form == "official" or not imitates(completion, DELIMITERS):
        return Question.of(write_prompt(row, completion), MAX_TOKENS)
    return Question.of(write_prompt(row, quote(completion, DELIMITERS)), MAX_TOKENS, system=NOTICE)


def write_prompt(row: Conversation, completion: str) -> str:
    """Return the published prompt."""
    instructions = [*json.loads(row.fields["earlier"]), row.question]
    level, kind = len(instructions) - 1, KINDS[row.fields["category"]]
    added = "1 additional constraint" if level == 1 else f"{level} additional constraints"
    steps = [
        f"#Initial Instruction + {_count(number)}#\n{instruction}"
        for number, instruction in enumerate(instructions[1:], 1)
    ]
    return "\n\n".join(
        [
            f"Given an initial instruction, we add one {kind}{'' if level == 1 else ' per time'} and obtain the final "
            f"instruction with {added}.",
            f"#Initial Instruction#\n{instructions[0]}",
            *steps,
            f"#Answer of Initial Instruction + {_count(level)}#\n{completion}",
            f"#System#\n{_write_task(level)}",
        ]
    )


def _count(level: int) -> str:
    return "1 constraint" if level == 1 else f"{level} constraints"


def _write_task(level: int) -> str:
    answer = f"#Answer of Initial Instruction + {_count(level)}#"
    if level == 1:  # its spelling is the published one
        return (
            "1) Please identify the 1 added constraint.\n"
            f"2) Please descriminate if the {answer} satisfies the 1 added constraint.\n"
            "3) In the final line, only output a Python LIST with 1 element ('YES' or 'NO') indicating whether the "
            "answer satisfies the 1 added constraint."
        )
    return (
        f"1) Please identify all {level} added constraints.\n"
        f"2) For the {level} added constraints, discriminate if the {answer} satisfies each constraint.\n"
        f"3) In the final line, only output a Python LIST with {level} elements ('YES' or 'NO') indicating whether the "
        "answer satisfies each constraint."
    )


def read_verdicts(text: str, level: int) -> tuple[float, ...] | None:
    """Return the judge's verdict on each constraint, from the last line of what it said; None if it has another form.

    FollowBench's own code counts that as -1.
    """
    line = text.strip("`").strip().split("\n")[-1]
    if level == 1:
        return (1.0,) if "YES" in line else (0.0,) if "NO" in line else None
    found = re.search(r"\[.*\]", line)
    try:
        verdicts = ast.literal_eval(found.group()) if found else []
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if len(verdicts) != level or any(verdict not in ("YES", *OTHER_WORDS_FOR_NO) for verdict in verdicts):
        return None
    return tuple(float(verdict == "YES") for verdict in verdicts)


def _apply_rule(completion: str, row: Conversation) -> bool | None:
    fields = row.fields
    return grade_by_rule(
        completion, fields["category"], fields["source"], int(fields["example"]), int(fields["level"]), row.answer
    )


def _read_grades(answer: Answer, level: int, flagged: bool) -> tuple[Grade, Grade]:
    """The hard and the soft grade."""
    parts = None if answer.problem else read_verdicts(answer.text, level)
    if parts is None:
        reason = answer.problem or f"the last line is not a list of {level} times YES or NO"
        return (Grade(None, None, reason, flagged),) * 2
    words = ", ".join("yes" if part else "no" for part in parts)
    return (
        Grade(words, float(all(parts)), flagged=flagged, parts=parts),
        Grade(words, sum(parts) / level, flagged=flagged, parts=parts),
    )
