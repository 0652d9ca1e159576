"""A browser, and pages of made runs, which the tests of this folder share."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from milora.comparison.grid import plan_grid
from milora.comparison.plan import Comparison
from milora.report.comparison_page import write_results
from milora.report.run_page import write_report
from milora.run.recipe import load_recipe
from milora.run.records import StepLoss
from milora.training.prepare import locate
from tests.made_runs import diverge, finish, make_run, make_scores

QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
QUIET += "--disable-component-update --disable-sync"
GRADES = {"LoRA": [1, 0] * 10, "MiLoRA": [1] * 15 + [0] * 5}


@dataclass(frozen=True, slots=True)
class Pages:
    """A comparison with a run that diverged and one that is missing; a scored run, and one without tasks."""

    comparison: Path
    run: Path
    own: Path

    @property
    def all(self) -> list[Path]:
        return [self.comparison, self.run, self.own]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no chromium on this machine (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=QUIET.split())
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Pages:
    root = tmp_path_factory.mktemp("pages")
    arms = {"LoRA": ["adapter.method=lora"], "MiLoRA": []}
    plan = Comparison(name="made", recipe="quickstart", arms=arms, learning_rates=[1e-3, 3e-3, 1e-1], seeds=[0, 1])
    grid = plan_grid(plan, root / "runs")

    def grade(cell):
        missing = cell.learning_rate == 1e-1 or (cell.learning_rate, cell.seed) == (3e-3, 1)
        return None if missing else GRADES[cell.arm]

    results = finish(grid, grade)
    diverged = next(cell for cell in grid.cells if cell.learning_rate == 1e-1)
    diverge(diverged.run, 3, 1e-1)
    comparison = write_results(grid, results)
    losses = [StepLoss(step, 2 / step, 1e-3) for step in range(1, 101)]
    run = make_run(locate(load_recipe("quickstart", ["evaluation.limit=40"]), root / "own"), losses=losses, steps=100)
    for base, right in ((True, 4), (False, 30)):
        make_scores(run, [1] * right + [0] * (40 - right), base=base)
    own = make_run(locate(load_recipe("quickstart", ["evaluation.tasks=[]", "seed=1"]), root / "own"))
    return Pages(comparison, write_report(run), write_report(own))
