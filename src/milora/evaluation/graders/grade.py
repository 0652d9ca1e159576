"""A verdict, and a way to reach many of them within limits."""

import os
import resource
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing import get_context

from pebble import ProcessPool

MEMORY = 4 * 2**30  # bytes of address space for each grading process


@dataclass(frozen=True, slots=True)
class Grade:
    """The answer as it was read, None if none can be read, and its score: 1 if it is right, 0 if it is wrong.

    A score of None is excluded from all means, for this `reason`: a judge said nothing that can be read. A `flagged`
    completion imitates the delimiters of the judge's prompt. `parts` are the scores of what the grade consists of, if
    it has parts: one for each instruction of a prompt.
    """

    answer: str | None
    score: float | None
    reason: str | None = None
    flagged: bool = False
    parts: tuple[float, ...] = ()


def grade_within(grader: Callable[[str, str], Grade], pairs: Sequence[tuple[str, str]], seconds: float) -> list[Grade]:
    """Grade (completion, gold) pairs in processes that are killed when one pair takes longer than `seconds`.

    What runs out of time or memory, raises, or takes its process down scores 0; the others are not touched.
    """
    workers = min(os.cpu_count() or 1, len(pairs)) or 1
    context = get_context("spawn")  # the parent may hold threads and a GPU
    with ProcessPool(workers, initializer=_confine, initargs=(grader,), context=context) as pool:
        futures = [pool.schedule(grader, args=list(pair), timeout=seconds) for pair in pairs]
        return [_result(future) for future in futures]


def _confine(grader: Callable[[str, str], Grade]) -> None:
    """Limit this process; naming the grader imports its libraries before the first clock starts."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _result(future: Future[Grade]) -> Grade:
    """The grade; what a parser raises on a model's text scores 0, but a missing library is not the model's fault."""
    error = future.exception()
    if isinstance(error, ImportError):
        raise error
    return Grade(None, 0.0) if error else future.result()
