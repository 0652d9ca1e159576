"""IFEval's checks, which are lm-eval's: does a completion do what each instruction of its prompt says?

All private API of lm-eval's task is in this file, and tests/test_seams.py asserts it.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any
from unittest.mock import patch

from milora.data.conversation import Conversation
from milora.evaluation.graders.grade import Grade
from milora.method.errors import MiloraError

SEED = 0  # langdetect guesses with random numbers: two runs must agree
STRICT, LOOSE = "prompt_strict", "prompt_loose"
FREQUENCY, JSON_FORMAT = "keywords:letter_frequency", "detectable_format:json_format"


def check_instructions_can_be_read() -> None:
    """Raise unless the libraries and the tokenizer of sentences that the checks need are there.

    lm-eval would download the tokenizer when it is imported.
    """
    try:
        import immutabledict  # noqa: F401
        import langdetect  # noqa: F401
        import nltk
    except ImportError as error:
        raise MiloraError(f"ifeval needs {error.name}, which is not installed", 'pip install "milora[eval]"') from error
    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError as error:
        raise MiloraError(
            "ifeval counts sentences with nltk's punkt_tab, which is not on this machine",
            "run `python -m nltk.downloader punkt_tab`, or set NLTK_DATA to a folder with tokenizers/punkt_tab",
        ) from error


def grade_instructions(completions: list[str], rows: list[Conversation]) -> dict[str, list[Grade]]:
    """Grade completions strictly, and loosely: any of eight readings without `*`, the first, or the last line will do.

    A grade is 1 if all instructions are followed; its parts are the verdicts on each.
    """
    check_instructions_can_be_read()
    from langdetect import DetectorFactory
    from lm_eval.tasks.ifeval import instructions, instructions_registry, utils

    DetectorFactory.seed = SEED
    readings = {STRICT: utils.test_instruction_following_strict, LOOSE: utils.test_instruction_following_loose}
    grades: dict[str, list[Grade]] = {name: [] for name in readings}
    published: Mapping[str, Any] = instructions_registry.INSTRUCTION_DICT
    fixed = {
        FREQUENCY: _count_any_character(published[FREQUENCY]),
        JSON_FORMAT: _survive_deep_nesting(published[JSON_FORMAT]),
    }
    logging.getLogger(instructions.__name__).setLevel(logging.CRITICAL)  # it prints texts without a language
    with patch.dict(published, fixed):
        for completion, row in zip(completions, rows, strict=True):
            asked = json.loads(row.fields["instructions"])
            example = utils.InputExample(
                key=int(row.fields["key"]),
                instruction_id_list=[entry["id"] for entry in asked],
                prompt=row.question,
                kwargs=[entry["arguments"] for entry in asked],
            )
            for name, read in readings.items():
                followed = [bool(verdict) for verdict in read(example, completion).follow_instruction_list]
                broken = [entry["id"] for entry, kept in zip(asked, followed, strict=True) if not kept]
                answer = f"not followed: {', '.join(broken)}" if broken else "all followed"
                grades[name].append(Grade(answer, float(not broken), parts=tuple(map(float, followed))))
    return grades


def _count_any_character(check: Any) -> Any:
    """The published check counts a random letter if a prompt asks for `#` or `!`, and so may find both yes and no."""

    class CharacterFrequency(check):
        def build_description(self, *, letter: str, **arguments: Any) -> Any:
            description = super().build_description(letter=letter, **arguments)
            self._letter = letter.lower()
            return description

    return CharacterFrequency


def _survive_deep_nesting(check: Any) -> Any:
    """The published check of JSON raises on a thousand open brackets, which a model may well repeat."""

    class NestedJson(check):
        def check_following(self, value: str) -> Any:
            try:
                return super().check_following(value)
            except RecursionError:
                return False

    return NestedJson
