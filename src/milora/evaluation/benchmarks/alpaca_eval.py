"""AlpacaEval 1.0 and 2.0: 805 instructions, greedy, judged against a reference output; win rates."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

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
from milora.method.errors import MiloraError

CONFIGS = f"{ALPACA_EVAL}src/alpaca_eval/evaluators_configs/"
COUNT = 805
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
    gamed = read_gamed(data_dir)
    metrics = measure_grades(samples)
    lengths = [len(sample.gold) - len(sample.completion) for sample in samples]
    wins = [sample.grades[WIN_RATE].score for sample in samples]
    if sum(win is not None for win in wins) < FOLDS:
        return metrics
    if gamed is None:
        items = [Judged(win, length) for win, length in zip(wins, lengths, strict=True)]
        return metrics | {MINIMAL: length_controlled(items, [])}
    by_instruction = {row.question: gamed.difficulties[index] for index, row in enumerate(rows)}
    items = [
        Judged(win, length, by_instruction[sample.question])
        for sample, win, length in zip(samples, wins, lengths, strict=True)
    ]
    judged = [item for item in items if item.preference is not None]
    by_position = [
        Judged(item.preference, item.shorter_by, gamed.difficulties[index]) for index, item in enumerate(judged)
    ]
    aligned = length_controlled(items, gamed.rows)
    official = aligned if by_position == items else length_controlled(by_position, gamed.rows)
    return metrics | {LENGTH_CONTROLLED: aligned, f"{LENGTH_CONTROLLED}_official": official}


@dataclass(frozen=True, slots=True)
class Gamed:
    """The rows of both gamed models, and the difficulty of every instruction in the official order."""

    rows: list[Judged]
    difficulties: list[float]


def read_gamed(data_dir: str | None) -> Gamed | None:
    """Return what the length-controlled win rate is fitted with; None without its file.

    Raises:
        MiloraError: it is another table, or lacks an instruction.
    """
    table = read_table(GAMED, data_dir)
    if table is None:
        return None
    hint = f"get it from {GAMED.address}"
    try:
        found: dict[int, float] = {}
        for row in table:
            found.setdefault(int(row["index"]), float(row["instruction_difficulty"]))
        judged = [row for row in table if row["preference"] not in ("", None)]
        rows = [
            Judged(float(row["preference"]), float(row["std_delta_len"]), found[int(row["index"])]) for row in judged
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise MiloraError(f"AlpacaEval's df_gamed.csv cannot be read: {error!r}", hint) from error
    if sorted(found) != list(range(COUNT)):
        raise MiloraError(f"AlpacaEval's df_gamed.csv has not the {COUNT} instructions, from 0 on", hint)
    return Gamed(rows, [found[index] for index in range(COUNT)])


def _check_2(data_dir: str | None) -> None:
    """Everything that is read beside the rows, before an answer is paid for."""
    read_template(VERSION_2, data_dir)
    read_gamed(data_dir)


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
    check=_check_2,
    summarize=summarize,
    primary=WIN_RATE,
    files=(*VERSION_2.prompt.files, *GAMED.files),
    max_new_tokens=8192,
)
