"""VizWiz: greedy, 128 new tokens, VQA accuracy over ten answers, of which `unanswerable` is one like others.

`vizwiz` is the validation split; the test split is scored at a server.
"""

import json
from collections.abc import Sequence

from milora.data.conversation import Conversation
from milora.evaluation.benchmarks.benchmark import Benchmark
from milora.evaluation.benchmarks.vqav2 import NEW_TOKENS, summarize_types
from milora.evaluation.graders.vqa import ACCURACY, grade_answers, normalize_m4c, score_vqa
from milora.evaluation.scores import Sample


def upload(samples: Sequence[Sample], rows: Sequence[Conversation], data_dir: str | None) -> bytes:
    """Return the answers as the server takes them, as LLaVA normalizes them."""
    pairs = zip(samples, rows, strict=True)
    answers = [{"image": row.fields["image"], "answer": normalize_m4c(sample.completion)} for sample, row in pairs]
    return json.dumps(answers).encode()


VIZWIZ = Benchmark(
    name="vizwiz",
    version=1,
    prompt=None,
    has_pictures=True,
    grade=grade_answers(score_vqa),
    max_new_tokens=NEW_TOKENS,
    summarize=summarize_types,
    primary=ACCURACY,
)
VIZWIZ_TEST = VIZWIZ.at_server(upload)
