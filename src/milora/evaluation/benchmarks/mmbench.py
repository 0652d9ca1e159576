"""MMBench: greedy, 1024 new tokens, the letter of an option. `mmbench` is dev; test is scored at a server.

Each question is asked once with every rotation of its options. The circular score counts a question if all are right.
"""

import json
from collections import defaultdict
from collections.abc import Sequence

from milora.data.conversation import Conversation
from milora.data.picture_rows import OPTIONS, ROUND
from milora.evaluation.benchmarks.benchmark import Benchmark
from milora.evaluation.benchmarks.scienceqa import NEW_TOKENS
from milora.evaluation.graders.grade import Grade
from milora.evaluation.graders.letters import read_mmbench
from milora.evaluation.scores import Sample
from milora.evaluation.spreadsheet import write_spreadsheet

CIRCULAR, SINGLE = "circular", "single"


def grade(completions: list[str], rows: list[Conversation]) -> dict[str, list[Grade]]:
    """Grade each question once, beside its first row: over all its rotations, and over that row alone.

    A question of which `evaluation.limit` cuts rotations has no circular grade.
    """
    options = [json.loads(row.fields["options"]) for row in rows]
    letters = [read_mmbench(text, given) for text, given in zip(completions, options, strict=True)]
    right: defaultdict[int, list[bool]] = defaultdict(list)
    for letter, row in zip(letters, rows, strict=True):
        right[int(row.fields["index"]) % ROUND].append(letter == row.answer)
    grades: dict[str, list[Grade]] = {CIRCULAR: [], SINGLE: []}
    for letter, row in zip(letters, rows, strict=True):
        index = int(row.fields["index"])
        if index >= ROUND:
            for found in grades.values():
                found.append(Grade(letter, None, "a rotation counts beside its question"))
            continue
        whole = len(right[index]) == int(row.fields["rotations"])
        circular = Grade(letter, float(all(right[index]))) if whole else Grade(letter, None, "rotations are missing")
        grades[CIRCULAR].append(circular)
        grades[SINGLE].append(Grade(letter, float(letter == row.answer)))
    return grades


def upload(samples: Sequence[Sample], rows: Sequence[Conversation], data_dir: str | None) -> bytes:
    """Return the table of questions with the completions, as LLaVA uploads it."""
    header = ["index", "question", *OPTIONS, "prediction", "answer", "split"]
    lines = []
    for sample, row in zip(samples, rows, strict=True):
        options = json.loads(row.fields["options"])
        cells = [row.fields["question"], *(options.get(letter, "") for letter in OPTIONS), sample.completion.strip()]
        lines.append([int(row.fields["index"]), *cells, row.answer, row.fields["split"]])
    return write_spreadsheet([header, *lines])


MMBENCH = Benchmark(
    name="mmbench",
    version=1,
    prompt=None,
    has_pictures=True,
    grade=grade,
    max_new_tokens=NEW_TOKENS,
    primary=CIRCULAR,
    upload=upload,
    upload_ending=".xlsx",
)
MMBENCH_TEST = MMBENCH.at_server(upload)
