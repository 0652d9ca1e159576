"""Invariant 6 for `milora init`: killed at random moments and started again, it writes the same bytes.

Broken by: a file that appears before it is complete, a config that appears before the weights, unfinished shards or
factors that count as finished.
"""

import os
import random
import shutil
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from itertools import islice
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.process import CONTEXT

KILLS = 10


def _init(model: str, output: str, base: str) -> None:
    from milora.__main__ import main

    sys.argv = ["milora", "init", model, "--rank", "8", "--form", base, "--jobs", "2", "-o", output]
    with Path("/dev/null").open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        main()


@pytest.fixture(scope="module")
def start():
    """Start the command in a separate process in which modules are already imported: this saves seconds per start."""

    def start(*arguments: Path | str) -> BaseProcess:
        process = CONTEXT.Process(target=_init, args=tuple(map(str, arguments)))
        process.start()
        return process

    return start


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(5)
    config = LlamaConfig(
        num_hidden_layers=6,
        hidden_size=192,
        intermediate_size=384,
        num_attention_heads=4,
        vocab_size=300,
        tie_word_embeddings=False,
    )
    folder = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder, max_shard_size="500kB")
    return folder


def _files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def _changes(output: Path, process: BaseProcess) -> Iterator[None]:
    """Yield whenever another set of files is seen, until the process ends."""
    before: set[str] = set()
    while process.exitcode is None:
        names = {name for _, _, files in os.walk(output) for name in files}
        if names != before:
            yield
        before = names


@pytest.mark.parametrize("base", ["intact", "residual"])
def test_killed_at_random_moments(start, model, tmp_path, base):
    output = tmp_path / "out"
    last = output / ("adapter_config.json" if base == "intact" else "config.json")
    process = start(model, output, base)
    changes = sum(1 for _ in _changes(output, process))
    undisturbed = _files(output)
    assert last.is_file() and changes > KILLS
    shutil.rmtree(output)

    generator = random.Random(base)
    kills = 0
    while kills < KILLS:
        process = start(model, output, base)
        # Up to twice the average: sometimes the process ends first, and the output is deleted.
        for _ in islice(_changes(output, process), generator.randint(1, 4 * changes // KILLS)):
            pass
        process.kill()
        process.join()
        kills += process.exitcode == -9
        if last.is_file():
            assert {name: _files(output)[name] for name in undisturbed} == undisturbed
        if process.exitcode == 0:
            shutil.rmtree(output)
    process = start(model, output, base)
    process.join()
    assert process.exitcode == 0
    assert _files(output) == undisturbed
