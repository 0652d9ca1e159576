"""AlpacaEval 1.0 and 2.0: 805 instructions, greedy, judged against a reference output; win rates."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from milora.data.conversation import Conversation
from milora.data.published import Published, read_table
from milora.data.sets import ALPACA_EVAL
from milora.evaluation.benchmarks.benchmark import Benchmark
from milora.evaluation.judges.alpaca_eval import (
    MODELS,
    WIN_RATE,
    Version,
    judge_pairs,
    read_probabilities,
    read_ranking,
    read_template,
)
from milora.evaluation.judges.length_control import FOLDS, Judged, length_controlled
from milora.evaluation.scores import Metric, Sample, measure_grades

CONFIGS = f"{ALPACA_EVAL}src/alpaca_eval/evaluators_configs/"
LENGTH_CONTROLLED, MINIMAL = "length_controlled", "length_controlled_minimal"

VERSION_1 = Version(
    annotator="alpaca_eval_gpt4",
    prompt=Published(
        ("instruction/alpaca_eval/judge_prompt_v1_alpaca_eval.txt", "instruction/alpaca_eval/alpaca_eval.txt"),
        f"{CONFIGS}alpaca_eval_gpt4/alpaca_eval.txt",
    ),
    verdicts=MODELS,
    max_tokens=100,
    temperature=0.0,
    top_logprobs=None,
    read=read_ranking,
)
VERSION_2 = Version(
    annotator="weighted_alpaca_eval_gpt4_turbo",
    prompt=Published(
        ("instruction/alpaca_eval/judge_prompt_v2_alpaca_eval_clf.txt", "instruction/alpaca_eval/alpaca_eval_clf.txt"),
        f"{CONFIGS}alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt",
    ),
    verdicts=("m", "M"),
    max_tokens=1,
    temperature=1.0,  # nothing is sampled that counts, and some servers scale log-probabilities by it
    top_logprobs=5,
    read=read_probabilities,
)
# Two models that the baseline plays, one concise and one verbose; with the difficulty of every instruction.
GAMED = Published(
    ("instruction/alpaca_eval/df_gamed.csv", "instruction/alpaca_eval/df_gamed_reconstructed.csv"),
    "https://huggingface.co/datasets/tatsu-lab/alpaca_eval/resolve/main/df_gamed.csv",
    optional=True,
)


def summarize(samples: Sequence[Sample], rows: Sequence[Conversation], data_dir: str | None) -> dict[str, Metric]:
    """Win rate, and the length-controlled one: with difficulties by instruction, and by position as the package does.

    The package counts positions among the rows that have a verdict, so that each row after one without gets another
    row's difficulty. Too few rows for cross-validation have neither.
    """
    table = read_table(GAMED, data_dir)
    metrics = measure_grades(samples)
    lengths = [len(sample.gold) - len(sample.completion) for sample in samples]
    wins = [sample.grades[WIN_RATE].score for sample in samples]
    if sum(win is not None for win in wins) < FOLDS:
        return metrics
    if table is None:
        items = [Judged(win, length) for win, length in zip(wins, lengths, strict=True)]
        return metrics | {MINIMAL: length_controlled(items, [])}
    difficulties = {int(row["index"]): float(row["instruction_difficulty"]) for row in table}
    gamed = [_read_gamed(row) for row in table]
    by_instruction = {row.question: difficulties[index] for index, row in enumerate(rows)}
    items = [
        Judged(win, length, by_instruction[sample.question])
        for sample, win, length in zip(samples, wins, lengths, strict=True)
    ]
    judged = [item for item in items if item.preference is not None]
    by_position = [Judged(item.preference, item.shorter_by, difficulties[index]) for index, item in enumerate(judged)]
    aligned = length_controlled(items, gamed)
    official = aligned if by_position == items else length_controlled(by_position, gamed)
    return metrics | {LENGTH_CONTROLLED: aligned, f"{LENGTH_CONTROLLED}_official": official}


def _read_gamed(row: Mapping[str, Any]) -> Judged:
    return Judged(float(row["preference"]), float(row["std_delta_len"]), float(row["instruction_difficulty"]))


ALPACA_EVAL_1 = Benchmark(
    name="alpaca_eval_1",
    version=1,
    prompt=None,
    judged=partial(judge_pairs, VERSION_1),
    check=partial(read_template, VERSION_1),
    primary=WIN_RATE,
    files=VERSION_1.prompt.files,
    max_new_tokens=8192,
)
ALPACA_EVAL_2 = Benchmark(
    name="alpaca_eval_2",
    version=1,
    prompt=None,
    judged=partial(judge_pairs, VERSION_2),
    check=partial(read_template, VERSION_2),
    summarize=summarize,
    primary=WIN_RATE,
    files=(*VERSION_2.prompt.files, *GAMED.files),
    max_new_tokens=8192,
)
