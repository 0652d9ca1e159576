"""One run of a comparison, in a process of its own."""

import os
import threading
import time
from pathlib import Path

from milora.evaluation.evaluate import evaluate
from milora.evaluation.forgetting import forget
from milora.evaluation.target import target_of_run
from milora.run.directory import FINISHED, locked, open_run
from milora.training.train import train


def work(path: Path, baseline: bool) -> None:
    """Train, evaluate and measure forgetting, each unless it is done; `finished.json`, written last, says that all is.

    Waits for a process that works on the same run: two comparisons may share one. Ends when its parent does.
    """
    threading.Thread(target=_end_with, args=[os.getppid()], daemon=True).start()
    with locked(path, wait=True):
        run = open_run(path)
        started = time.perf_counter()
        train(run)
        if run.recipe.evaluation.tasks:
            evaluate(target_of_run(run), run.recipe.evaluation, baseline=baseline)
        forget(run)
        run.write(FINISHED, {"seconds": time.perf_counter() - started, "baseline": baseline})


def _end_with(parent: int) -> None:
    """Exit when the comparison is gone, however it went: it may have been started again, and starts its own."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
