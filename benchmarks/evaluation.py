"""Samples per second of `milora eval` against the authors' loop, in alternation in one run, same model and tasks.

    python benchmarks/evaluation.py RUN --data-dir DIR [--limit 48] [--out benchmarks/results/evaluation-cpu.json]

The authors' loop, as LLM-Adapters' commonsense_evaluate.py has it: the adapter merged into the weights, batches in the
given order, one `generate` each (here with the attention mask that it lacks, and the same stop strings, so that both
make the same text). Ours once with the same batch size, once with its own. RUN is a trained run of any recipe.
"""

import argparse
import statistics
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from initialization import clock
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from milora.evaluation.benchmarks import BENCHMARKS
from milora.evaluation.benchmarks.benchmark import Benchmark
from milora.evaluation.generation.local import LocalBackend
from milora.evaluation.generation.request import Request
from milora.evaluation.generation.wide import widen
from milora.evaluation.target import resolve_target
from milora.method.files import format_json, write_json
from milora.models.base import attach_adapter, load_model, load_tokenizer
from milora.run.environment import describe_environment


def loop(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, requests: list[Request], batch_size: int
) -> list[str]:
    """The authors' form."""
    tokenizer.padding_side = "left"
    completions: list[str] = []
    decoding = requests[0].decoding
    for start in range(0, len(requests), batch_size):
        prompts = [request.text for request in requests[start : start + batch_size]]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True)
        stops = {"stop_strings": list(decoding.stops), "tokenizer": tokenizer} if decoding.stops else {}
        with torch.no_grad():
            output = model.generate(
                **inputs,
                max_new_tokens=decoding.max_new_tokens,
                num_beams=decoding.beams,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
                **stops,
            )
        completions += tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return completions


def complete(backend: LocalBackend, requests: list[Request]) -> dict[int, str]:
    return {index: found.text for part in backend.complete(requests, ()) for index, found in part.items()}


def requests_of(
    benchmark: Benchmark,
    tokenizer: PreTrainedTokenizerBase,
    data_dir: str | None,
    limit: int,
    max_new_tokens: int | None,
) -> list[Request]:
    decoding = benchmark.decoding(min(max_new_tokens or benchmark.max_new_tokens, benchmark.max_new_tokens))
    prompt = benchmark.prompt
    return [
        Request(prompt.render(row.prompt), tuple(prompt.encode_prompt(tokenizer, row.prompt)), decoding)
        for row in benchmark.load(data_dir, limit)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--tasks", nargs="*", default=["arc_easy", "gsm8k"])
    parser.add_argument("--data-dir")
    parser.add_argument("--limit", type=int, default=48)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, help="fewer than the protocol's")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path, metavar="JSON")
    options = parser.parse_args()
    target = resolve_target(options.run)
    if target.adapter is None:
        parser.error("RUN has no adapter")
    tokenizer = load_tokenizer(target.model)
    merged = attach_adapter(load_model(target.model), target.adapter, target.form).merge_and_unload().eval()
    backends = {
        "ours": LocalBackend(widen(target.load()), tokenizer, "auto"),
        "same batch": LocalBackend(widen(target.load()), tokenizer, options.batch_size),
    }
    rows: list[dict[str, Any]] = []
    for name in options.tasks:
        requests = requests_of(BENCHMARKS[name], tokenizer, options.data_dir, options.limit, options.max_new_tokens)
        seconds: dict[str, list[float]] = {name: [] for name in ("loop", *backends)}
        equal = 0
        for _ in range(options.repetitions):
            elapsed, theirs = clock(partial(loop, merged, tokenizer, requests, options.batch_size))
            seconds["loop"].append(elapsed)
            for backend_name, backend in backends.items():
                elapsed, ours = clock(partial(complete, backend, requests))
                seconds[backend_name].append(elapsed)
            equal = sum(ours[index].strip() == text.strip() for index, text in enumerate(theirs))
        row = {"task": name, "samples": len(requests), "equal_completions": equal}
        for backend_name, times in seconds.items():
            row[f"{backend_name}: samples per second"] = len(requests) / statistics.median(times)
            ratios = [theirs / own for theirs, own in zip(seconds["loop"], times, strict=True)]
            row[f"{backend_name}: ratio"] = statistics.median(ratios)
        rows.append(row)
        print(format_json(row), flush=True)
    if options.out:
        report = {
            "run": target.served,
            **asdict(describe_environment()),
            "threads": torch.get_num_threads(),
            "dtype": target.model.dtype,
            "batch_size": options.batch_size,
            "max_new_tokens": options.max_new_tokens,
            "rows": rows,
        }
        write_json(options.out, report)


if __name__ == "__main__":
    main()
