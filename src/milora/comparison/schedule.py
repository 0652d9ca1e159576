"""Runs that are missing → processes, some at a time, on this machine or on a Ray cluster."""

import os
import queue
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import torch

from milora.run.directory import RunDirectory


@dataclass(frozen=True, slots=True)
class Job:
    """A run to do in a process of its own.

    `recipe` is the file of its recipe: two comparisons may share a run and score it differently. `factors` is the
    folder of factors that the runs of a comparison share. `yes` agrees to what a judge costs.
    """

    run: RunDirectory
    recipe: Path
    scores_base: bool
    factors: Path
    yes: bool = False


def run_here(waiting: Sequence[Job], jobs: int) -> Iterator[tuple[Job, str | None]]:
    """Run each job in a process, `jobs` at a time; yield it, and the reason if it failed, as they end.

    The processes divide the cores evenly, and each has one GPU if there are any. What a process says goes to the log of
    its run. A failed one does not stop the others.
    """
    devices = _visible_devices()
    slots: queue.SimpleQueue[int] = queue.SimpleQueue()
    for slot in range(jobs):
        slots.put(slot)

    def run(job: Job) -> str | None:
        slot = slots.get()
        settings = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
        if devices:
            settings["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
        try:
            return run_job(job, settings)
        finally:
            slots.put(slot)

    yield from _in_threads(run, waiting, jobs)


def run_on_ray(waiting: Sequence[Job], gpus: float) -> Iterator[tuple[Job, str | None]]:
    """The same as Ray tasks, each with `gpus` GPUs, on as many machines as the cluster has.

    The run directories must be in a folder that all of them see. `RAY_ADDRESS` names the cluster; without it, Ray
    starts on this machine.
    """
    import ray  # an extra of its own

    ray.init(log_to_driver=False)
    try:
        remote = ray.remote(num_gpus=gpus, num_cpus=1, max_retries=0)(run_job)
        pending = {remote.remote(job, {}): job for job in waiting}
        while pending:
            (done,), _ = ray.wait(list(pending), num_returns=1)
            yield pending.pop(done), ray.get(done)
    finally:
        ray.shutdown()


def run_job(job: Job, settings: dict[str, str]) -> str | None:
    """Run one job in a process with these environment variables; return why it failed, or None."""
    log = job.run.log
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "milora", "work", str(job.run.path)]
    command += [
        "--recipe",
        str(job.recipe),
        "--factors",
        str(job.factors),
        "--parent",
        str(os.getpid()),
        *(["--baseline"] if job.scores_base else []),
        *(["--yes"] if job.yes else []),
    ]
    with log.open("w", encoding="utf-8") as stream:
        done = subprocess.run(command, stdout=stream, stderr=stream, env={**os.environ, **settings}, check=False)
    if done.returncode == 0:
        return None
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [f"it ended with {done.returncode}"])[-1].removeprefix("error: ")


def _in_threads(
    run: Callable[[Job], str | None], waiting: Sequence[Job], jobs: int
) -> Iterator[tuple[Job, str | None]]:
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(run, job): job for job in waiting}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            # Interrupted: what has not started does not start.
            pool.shutdown(wait=False, cancel_futures=True)


def _visible_devices() -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]
