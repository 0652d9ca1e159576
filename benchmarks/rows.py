"""Preparing rows, the first time and the second: GSM8K's rows with other numbers, template alpaca, at most 512 tokens.

python benchmarks/rows.py GSM8K/train.jsonl [--rows 395000] [--out benchmarks/results/rows-cpu.json]
"""

import argparse
import json
import random
import re
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from milora.method.files import write_json
from milora.models.base import load_tokenizer
from milora.run.allocator import keep_large_blocks
from milora.run.environment import describe_environment
from milora.run.recipe import Recipe, load_recipe
from milora.training.rows import prepare_rows


def write_rows(source: Path, target: Path, count: int) -> None:
    """Write `count` rows, each one of the source's with random numbers in place of its own."""
    rows, draw = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()], random.Random(0)

    def vary(text: str) -> str:
        return re.sub(r"\d+", lambda _: str(draw.randint(1, 999)), re.sub(r"<<.*?>>", "", text))

    with target.open("w", encoding="utf-8") as file:
        for index in range(count):
            row = rows[index % len(rows)]
            file.write(json.dumps({key: vary(row[key]) for key in ("question", "answer")}) + "\n")


def make_recipe(file: Path) -> Recipe:
    own = [f"data.name={file}", "data.rows=null", "data.template=alpaca", "training.max_length=512"]
    return load_recipe("math-smoke", own)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("gsm8k", type=Path)
    parser.add_argument("--rows", type=int, default=395_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    keep_large_blocks()  # as the command line does
    with tempfile.TemporaryDirectory() as temporary:
        file, cache = Path(temporary) / "rows.jsonl", Path(temporary) / "cache"
        write_rows(options.gsm8k, file, options.rows)
        recipe, seconds = make_recipe(file), {}
        tokenizer = load_tokenizer(recipe.model)
        for time_of in ("first", "second"):
            started = time.perf_counter()
            rows = prepare_rows(recipe, tokenizer, cache)
            seconds[time_of] = time.perf_counter() - started
            print(f"{time_of:<8} {seconds[time_of]:7.1f} s  {len(rows.train):,} rows  {rows.report.tokens:,} tokens")
    if options.out:
        result = {"rows": asdict(rows.report), "seconds": seconds, "environment": asdict(describe_environment())}
        write_json(options.out, result)


if __name__ == "__main__":
    main()
