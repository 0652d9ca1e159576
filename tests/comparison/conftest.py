"""One small comparison, which the tests of this folder share."""

import subprocess
from pathlib import Path

import pytest

from tests.process import run_milora


def compare(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_milora("compare", *arguments)


@pytest.fixture(scope="session")
def small_comparison(small_recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("comparison") / "small.yaml"
    path.write_text(
        f"""name: small
recipe: {small_recipe}
overrides:
  - training.max_steps=4
  - evaluation.tasks=arithmetic,forgetting
  - evaluation.forgetting.block_count=2
  - evaluation.forgetting.block_length=16
arms:
  LoRA: [adapter.method=lora]
  MiLoRA: [adapter.method=milora]
learning_rates: [1e-3, 1e-2]
seeds: [0, 1]
"""
    )
    return path


@pytest.fixture(scope="session")
def compared(small_comparison: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """One comparison, undisturbed; what it printed and where it is."""
    root = tmp_path_factory.mktemp("undisturbed")
    done = compare(small_comparison, "--jobs", 2, "--runs", root / "runs")
    assert done.returncode == 0, done.stderr
    assert "8 runs of 4 steps, 8 finished" in done.stderr
    return done.stdout, root
