"""Tasks that come with lm-evaluation-harness, by name or as a YAML file: MMLU, BBH, IFEval, and the like."""

import difflib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import Any
from unittest.mock import patch

from lm_eval import evaluator
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from milora.evaluation.benchmarks import BENCHMARKS, GROUPS
from milora.evaluation.graders.grade import Grade
from milora.evaluation.intervals import Z
from milora.evaluation.scores import Metric, Sample, Unit, measure
from milora.method.errors import MiloraError


@cache
def _manager() -> TaskManager:
    return TaskManager()


def find_task(name: str) -> str | dict[str, Any]:
    """Return what the harness takes for a task of its own, or for a YAML file of one.

    Raises:
        MiloraError: the task does not exist.
    """
    if name.endswith((".yaml", ".yml")):
        try:
            config: Any = OmegaConf.to_container(OmegaConf.load(name))
        except (OSError, OmegaConfBaseException, YAMLError) as error:
            raise MiloraError(f"task {name} cannot be read: {error}", "name a task file of lm-eval") from error
        if isinstance(config, dict) and "task" in config:
            return config
        raise MiloraError(f"{name} is not a task file of lm-eval: it has no `task`", "see lm-eval's task guide")
    if name not in _manager().all_tasks:
        known = [*BENCHMARKS, *GROUPS]
        near = difflib.get_close_matches(name, {*known, *_manager().all_tasks}, n=3)
        raise MiloraError(
            f"there is no task {name}, here or in lm-eval",
            f"did you mean {' or '.join(near)}?" if near else f"milora's own are {', '.join(known)}",
        )
    return name


@dataclass(frozen=True, slots=True)
class Found:
    """A task's metrics, the headline among them, in which unit they are, and its samples."""

    metrics: dict[str, Metric]
    primary: str
    unit: Unit
    samples: list[Sample]


def score_task(harness: LM, name: str, limit: int | None) -> Found:
    """Score a task under the harness's own protocol; its first metric is the headline.

    Raises:
        MiloraError: a group of tasks without a metric of its own.
    """
    task = find_task(name)
    # It would ask git about the user's working folder, and git prints "fatal: not a git repository".
    with patch.object(evaluator, "get_git_commit_hash", lambda: None):
        results = evaluator.simple_evaluate(
            model=harness, tasks=[task], limit=limit, task_manager=_manager(), bootstrap_iters=1000
        )
    title = name if isinstance(task, str) else task["task"]
    found = results["groups"][title] if title in results.get("groups", {}) else results["results"][title]
    samples = [sample for rows in results["samples"].values() for sample in _read_samples(rows)]
    metrics = {}
    for key, value in found.items():
        metric, _, kind = key.partition(",")
        if isinstance(value, float) and not metric.endswith("_stderr"):
            error = found.get(f"{metric}_stderr,{kind}")
            metrics[_title(metric, kind)] = _measure(value, error, samples, _title(metric, kind))
    if not metrics:
        raise MiloraError(f"{name} is a group without a metric of its own", "name its tasks in evaluation.tasks")
    primary = next(iter(metrics))
    return Found(metrics, primary, "number" if "perplexity" in primary or "bits" in primary else "share", samples)


def _measure(value: float, error: Any, samples: Sequence[Sample], title: str) -> Metric:
    """A metric is ours if it is the mean of its samples' grades; of others the harness's own error is all there is."""
    grades = [sample.grades[title].score for sample in samples if title in sample.grades]
    if grades and math.isclose(fmean(grades), value, abs_tol=1e-9):
        return measure(grades)
    if not isinstance(error, float) or not error > 0:  # a number of 0, or not one
        return Metric(value, None)
    return Metric(value, error, (value - Z * error, value + Z * error))


def _title(metric: str, kind: str) -> str:
    """lm-eval names a metric together with the filter that made its answers."""
    return metric if kind == "none" else f"{metric} ({kind})"


def _read_samples(rows: Iterable[dict[str, Any]]) -> list[Sample]:
    """lm-eval has one entry for each document and filter."""
    samples: dict[int, Sample] = {}
    for row in rows:
        answer = json.dumps(row["filtered_resps"], default=handle_non_serializable, ensure_ascii=False)
        grades = {
            _title(metric, row["filter"]): Grade(answer, float(row[metric]))
            for metric in row["metrics"]
            if isinstance(row[metric], (bool, int, float))
        }
        if row["doc_id"] in samples:
            samples[row["doc_id"]].grades.update(grades)
        else:
            samples[row["doc_id"]] = Sample(
                question=str(row["arguments"][0][0]),
                gold=str(row["target"]),
                completion=json.dumps(row["resps"], default=handle_non_serializable, ensure_ascii=False),
                grades=grades,
            )
    return list(samples.values())
