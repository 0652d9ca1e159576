"""A benchmark: its rows, its prompt and decoding, and its two gradings; one task of lm-evaluation-harness."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import datasets
from lm_eval.api.task import ConfigurableTask

from milora.evaluation.graders.grade import Grade, grade_within
from milora.data.rows import load_rows
from milora.data.templates import EVALUATION_PROMPTS, PROMPTS, Prompt
from milora.data.sets import Row

Grader = Callable[[str, str], Grade]
GRADING_SECONDS = 10.0  # for what computes: per completion and grader


class Grades(NamedTuple):
    """What the paper's grader says of a completion, and what a right one does."""

    official: Grade
    corrected: Grade


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One benchmark.

    The rows are the test split of the named set of the same name. `grade` takes completions and their rows.
    `official_prompt` names one of `EVALUATION_PROMPTS`. `version` changes whenever prompt, decoding or grading do.
    """

    name: str
    version: int
    grade: Callable[[list[str], list[Row]], list[Grades]]
    official_prompt: str
    max_new_tokens: int
    stops: tuple[str, ...] = ()
    beams: int = 1
    runs_code: bool = False

    def load(self, data_dir: str | None) -> list[Row]:
        return load_rows(self.name, "test", data_dir)

    def resolve_prompt(self, run_prompt: str | None) -> Prompt:
        """The prompt that the model was trained with, or, for None, the official one."""
        return PROMPTS[run_prompt] if run_prompt else EVALUATION_PROMPTS[self.official_prompt]

    def decoding(self, max_new_tokens: int | None) -> dict[str, Any]:
        """The harness' generation keywords, with fewer new tokens than the protocol's where that is asked for."""
        return {
            "until": list(self.stops),
            "max_gen_toks": max_new_tokens or self.max_new_tokens,
            "do_sample": False,
            "num_beams": self.beams,
        }


def grade_text(
    official: Grader,
    corrected: Grader,
    *,
    gold: Callable[[Row], str] = lambda row: row["answer"],
    limited: bool = False,
) -> Callable[[list[str], list[Row]], list[Grades]]:
    """Grade by comparing a completion's text with the gold answer's, `limited` in time by processes of its own."""

    def grade(completions: list[str], rows: list[Row]) -> list[Grades]:
        pairs = [(completion, gold(row)) for completion, row in zip(completions, rows, strict=True)]
        if limited:
            columns = [grade_within(grader, pairs, GRADING_SECONDS) for grader in (official, corrected)]
        else:
            columns = [[grader(*pair) for pair in pairs] for grader in (official, corrected)]
        return [Grades(*both) for both in zip(*columns, strict=True)]

    return grade


def make_task(benchmark: Benchmark, rows: list[Row], prompt: Prompt, max_new_tokens: int | None) -> ConfigurableTask:
    """Return the benchmark as a harness task: greedy or beam decoding; grading follows, over all at once."""
    config: dict[str, Any] = {
        "task": benchmark.name,
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(rows)},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": lambda row: prompt.render(row["question"]),
        "doc_to_target": lambda row: row["answer"],
        "target_delimiter": "",
        "process_results": lambda row, completions: {},
        "generation_kwargs": benchmark.decoding(max_new_tokens),
        "metadata": {"version": benchmark.version},
    }
    return ConfigurableTask(config=config)
