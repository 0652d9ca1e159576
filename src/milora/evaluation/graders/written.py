"""Answers that only a server can grade: here, whether there is one."""

from milora.data.conversation import Conversation
from milora.evaluation.graders.grade import Grade

ANSWERED = "answered"


def grade_written(completions: list[str], rows: list[Conversation]) -> dict[str, list[Grade]]:
    """Grade a completion 1 if it is not empty."""
    return {ANSWERED: [Grade(text.strip() or None, float(bool(text.strip()))) for text in completions]}
