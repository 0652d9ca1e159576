"""Tasks that lm-evaluation-harness brings itself, by name or as a YAML file: MMLU, BBH, IFEval and the like."""

import difflib
import json
from functools import cache
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from milora.evaluation.benchmarks import BENCHMARKS, GROUPS
from milora.method.errors import MiloraError


@cache
def _manager() -> TaskManager:
    return TaskManager()


def find_foreign(name: str) -> str | dict[str, Any]:
    """Return what the harness takes for a task of its own, or for a YAML file of one.

    Raises:
        MiloraError: there is no such task.
    """
    if name.endswith((".yaml", ".yml")):
        try:
            config: Any = OmegaConf.to_container(OmegaConf.load(name))
        except (OSError, OmegaConfBaseException, YAMLError) as error:
            raise MiloraError(f"task {name} cannot be read: {error}", "name a task file of lm-eval") from error
        if isinstance(config, dict) and "task" in config:
            return config
        raise MiloraError(f"{name} is no task file of lm-eval: it has no `task`", "see lm-eval's task guide")
    if name not in _manager().all_tasks:
        known = [*BENCHMARKS, *GROUPS]
        near = difflib.get_close_matches(name, {*known, *_manager().all_tasks}, n=3)
        raise MiloraError(
            f"there is no task {name}, here or in lm-eval",
            f"did you mean {' or '.join(near)}?" if near else f"milora's own are {', '.join(known)}",
        )
    return name


def score_foreign(harness: LM, name: str, limit: int | None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the scores and samples of a task, under the harness' own protocol; `accuracy` is its first metric."""
    task = find_foreign(name)
    results = simple_evaluate(model=harness, tasks=[task], limit=limit, task_manager=_manager(), bootstrap_iters=1000)
    title = name if isinstance(task, str) else task["task"]
    metrics = results["groups"][title] if title in results.get("groups", {}) else results["results"][title]
    first = next(key for key, value in metrics.items() if isinstance(value, float) and "_stderr" not in key)
    metric, _, kind = first.partition(",")
    error = metrics.get(f"{metric}_stderr,{kind}")
    samples = [{"task": part, **sample} for part, rows in results["samples"].items() for sample in rows]
    scores = {
        "task": title,
        "metric": metric,
        "accuracy": metrics[first],
        "standard_error": error if isinstance(error, float) else None,
        "count": len(samples),
        "results": json.loads(json.dumps(results["results"], default=handle_non_serializable)),
        "versions": results["versions"],
    }
    return scores, json.loads(json.dumps(samples, default=handle_non_serializable))
