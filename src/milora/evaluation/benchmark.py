"""A benchmark: its rows, its decoding, its grader; run by lm-evaluation-harness."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import datasets
from lm_eval.api.task import ConfigurableTask

from milora.run.data import Row
from milora.run.prompts import PROMPTS, Prompt


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One benchmark.

    `load` takes a `data_dir` (None: the hub). `extract` reads the answer out of a completion or of a gold answer, None
    where there is none; a completion is correct if both give the same. `prompt` is None where the run's own serves.
    `version` changes whenever prompt, decoding or grading do.
    """

    name: str
    version: int
    load: Callable[[str | None], list[Row]]
    extract: Callable[[str], object | None]
    max_new_tokens: int
    stops: tuple[str, ...] = ()
    beams: int = 1
    prompt: str | None = None

    def is_correct(self, completion: str, gold: str) -> bool:
        answer = self.extract(completion)
        return answer is not None and answer == self.extract(gold)

    def resolve_prompt(self, run_prompt: str) -> Prompt:
        return PROMPTS[self.prompt or run_prompt]


def make_task(
    benchmark: Benchmark, prompt: Prompt, *, data_dir: str | None, max_new_tokens: int | None
) -> ConfigurableTask:
    """Return the benchmark as a harness task: greedy or beam decoding, scored by accuracy."""
    rows = benchmark.load(data_dir)

    def grade(row: Row, completions: list[str]) -> dict[str, float]:
        return {"accuracy": float(benchmark.is_correct(completions[0], row["answer"]))}

    config: dict[str, Any] = {
        "task": benchmark.name,
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(rows)},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": lambda row: prompt.render(row["question"]),
        "doc_to_target": lambda row: row["answer"],
        "target_delimiter": "",
        "process_results": grade,
        "metric_list": [{"metric": "accuracy", "aggregation": "mean", "higher_is_better": True}],
        "generation_kwargs": {
            "until": list(benchmark.stops),
            "max_gen_toks": max_new_tokens or benchmark.max_new_tokens,
            "do_sample": False,
            "num_beams": benchmark.beams,
        },
        "metadata": {"version": benchmark.version},
    }
    return ConfigurableTask(config=config)
