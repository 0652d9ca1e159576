"""ARC-Easy as LLM-Adapters poses it: four beams, 32 new tokens, the last choice that is named as a whole word."""

import re

from milora.evaluation.benchmark import Benchmark
from milora.run.data import load_rows


def extract_choice(text: str) -> str | None:
    """Return the last of answer1 … answer5 in the text, None where there is none."""
    choices = re.findall(r"\banswer[1-5]\b", text.lower())
    return choices[-1] if choices else None


ARC_EASY = Benchmark(
    name="arc_easy",
    version=1,
    load=lambda data_dir: load_rows("arc_easy", "test", data_dir),
    extract=extract_choice,
    max_new_tokens=32,
    beams=4,
    prompt="commonsense",
)
