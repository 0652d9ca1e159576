"""Outputs and annotations in AlpacaEval's own file formats, for its leaderboard and its tools."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from milora.data.conversation import Conversation
from milora.data.files import read_rows
from milora.method.files import write_json
from milora.run.directory import ScoreFolder


@dataclass(frozen=True, slots=True)
class Annotation:
    """A verdict on one row's completion, and what the judge said: 1 for the reference, 2 for the completion."""

    row: Conversation
    completion: str
    generator: str
    annotator: str
    preference: float | None
    said: str | None


def write_outputs(
    folder: ScoreFolder, generator: str, rows: Sequence[Conversation], completions: Sequence[str]
) -> None:
    """Write what `alpaca_eval --model_outputs` takes."""
    write_json(
        folder.outputs,
        [
            {
                "dataset": row.fields["dataset"],
                "instruction": row.question,
                "output": completion,
                "generator": generator,
            }
            for row, completion in zip(rows, completions, strict=True)
        ],
    )


def write_annotations(folder: ScoreFolder, annotations: Sequence[Annotation]) -> None:
    """Write what the leaderboard keeps of each model."""
    write_json(folder.annotations, [_to_row(annotation) for annotation in annotations])


def _to_row(annotation: Annotation) -> dict[str, Any]:
    row = annotation.row
    return {
        "instruction": row.question,
        "output_1": row.answer,
        "generator_1": row.fields["generator"],
        "dataset": row.fields["dataset"],
        "output_2": annotation.completion,
        "generator_2": annotation.generator,
        "annotator": annotation.annotator,
        "preference": annotation.preference,
        "raw_completion": annotation.said,
    }


def read_annotations(path: Path) -> list[Annotation]:
    """Return the verdicts of a file of annotations, ours or a published one; 0, of old files, is a draw.

    Raises:
        MiloraError: the file cannot be read.
    """
    return [_from_row(row) for row in read_rows(path)]


def _from_row(row: dict[str, Any]) -> Annotation:
    said, preference = row.get("raw_completion"), row["preference"]
    return Annotation(
        Conversation.of_turn(row["instruction"], row["output_1"], generator=row["generator_1"], dataset=row["dataset"]),
        row["output_2"],
        row["generator_2"],
        row["annotator"],
        1.5 if preference == 0 else preference,
        said if said is None or isinstance(said, str) else json.dumps(said),
    )
