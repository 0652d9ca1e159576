"""MT-bench: 80 questions of two turns, each answer rated from 1 to 10 by a judge; greedy, 1024 new tokens.

FastChat samples some categories at a temperature of 0.7; greedy is what all benchmarks here are.
"""

from collections.abc import Sequence
from dataclasses import replace

from milora.data.conversation import Conversation, Message, Text
from milora.evaluation.benchmarks.benchmark import Benchmark
from milora.evaluation.judges.mt_bench import PROMPTS, RATING, REFERENCES, rate_answers, read_files
from milora.evaluation.scores import Metric, Sample, measure, measure_grades


def ask_again(row: Conversation, answer: str) -> Conversation:
    """Return the second turn: the second question after the model's own first answer."""
    (first,) = row.prompt
    messages = (
        first,
        Message("assistant", (Text(answer.strip()),)),
        Message("user", (Text(row.fields["second"]),)),
        Message("assistant", (Text(""),)),
    )
    return replace(row, messages=messages, fields=row.fields | {"turn": "2"})


def summarize(samples: Sequence[Sample], rows: Sequence[Conversation], data_dir: str | None) -> dict[str, Metric]:
    """The mean rating, and that of each turn. A turn of which nothing could be rated has none."""
    metrics = measure_grades(samples)
    for turn in ("1", "2"):
        ratings = [
            score
            for sample, row in zip(samples, rows, strict=True)
            if row.fields["turn"] == turn and (score := sample.grades[RATING].score) is not None
        ]
        if ratings:
            metrics[f"turn_{turn}"] = measure(ratings)
    return metrics


MT_BENCH = Benchmark(
    name="mt_bench",
    version=1,
    prompt=None,
    judged=rate_answers,
    max_new_tokens=1024,
    summarize=summarize,
    primary=RATING,
    unit="number",
    files=(*PROMPTS.files, *REFERENCES.files),
    follow_up=ask_again,
    check=read_files,
)
