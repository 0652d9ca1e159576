"""VQAv2: greedy, 128 new tokens, VQA accuracy over ten answers. `vqav2` is val2014; test-dev is scored at a server."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from milora.data.conversation import Conversation
from milora.data.files import read_rows
from milora.data.picture_sets import find_picture_files
from milora.evaluation.benchmarks.benchmark import Benchmark
from milora.evaluation.graders.vqa import ACCURACY, grade_answers, normalize_m4c, score_vqa
from milora.evaluation.scores import Metric, Sample, measure, measure_grades

NEW_TOKENS = 128


def summarize_types(samples: Sequence[Sample], rows: Sequence[Conversation], data_dir: str | None) -> dict[str, Metric]:
    """The accuracy over all questions, and over those of each type of answer."""
    by_type = defaultdict(list)
    for sample, row in zip(samples, rows, strict=True):
        by_type[row.fields["type"].replace("/", "_")].append(sample.grades[ACCURACY].score or 0.0)
    return measure_grades(samples) | {name: measure(scores) for name, scores in sorted(by_type.items())}


def upload(samples: Sequence[Sample], rows: Sequence[Conversation], data_dir: str | None) -> bytes:
    """Return the answers to test-dev among all of test2015's, which the server wants, as LLaVA normalizes them."""
    answers = {
        int(row.fields["key"]): normalize_m4c(sample.completion) for sample, row in zip(samples, rows, strict=True)
    }
    _, whole = find_picture_files("vqav2_test", data_dir)
    keys = [row["question_id"] for row in next(iter(read_rows(Path(whole))))["questions"]]
    return json.dumps([{"question_id": key, "answer": answers.get(key, "")} for key in keys]).encode()


VQAV2 = Benchmark(
    name="vqav2",
    version=1,
    prompt=None,
    has_pictures=True,
    grade=grade_answers(score_vqa),
    max_new_tokens=NEW_TOKENS,
    summarize=summarize_types,
    primary=ACCURACY,
)
VQAV2_TEST = VQAV2.at_server(upload)
