"""Tasks that come with lm-evaluation-harness, by name or as a YAML file: MMLU, BBH, IFEval, and the like."""

import difflib
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import Any
from unittest.mock import patch

from datasets.exceptions import DatasetsError
from jinja2 import TemplateError
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.utils import handle_non_serializable
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from transformers import PreTrainedTokenizerBase
from yaml import YAMLError

from milora.evaluation.benchmarks import BENCHMARKS, GROUPS, SUITES
from milora.evaluation.graders.grade import Grade
from milora.evaluation.intervals import Z
from milora.evaluation.scores import Metric, Sample, Unit, measure
from milora.method.errors import MiloraError
from milora.run.sections import EvaluationSection

ALLOW_CODE = "HF_ALLOW_CODE_EVAL"
# What a task's own code, its templates, and the data set that it names raise when they are loaded.
FAILURES = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, ImportError, AssertionError),
    *(DatasetsError, TemplateError),
)


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
        known = [*BENCHMARKS, *GROUPS, *SUITES]
        near = difflib.get_close_matches(name, {*known, *_manager().all_tasks}, n=3)
        raise MiloraError(
            f"there is no task {name}, here or in lm-eval",
            f"did you mean {' or '.join(near)}?" if near else f"milora's own are {', '.join(known)}",
        )
    return name


def check_task(name: str, section: EvaluationSection, tokenizer: PreTrainedTokenizerBase, context: int | None) -> None:
    """Raise unless a task loads with its data, may run, makes a prompt of its first row, and fits the context.

    Raises:
        MiloraError: one of these, or the tokenizer lacks the chat template that is asked for.
    """
    if section.apply_chat_template and not tokenizer.chat_template:
        raise MiloraError(
            f"evaluation.apply_chat_template: the tokenizer of {tokenizer.name_or_path} has no chat template",
            "leave it out",
        )
    for title, task in _load(name, section.allow_code_execution).items():
        if task.OUTPUT_TYPE != "generate_until" or context is None:
            continue
        asked = (task.config.generation_kwargs or {}).get("max_gen_toks", HFLM.max_gen_toks.fget(None))
        if asked >= context:
            raise MiloraError(
                f"{title} asks for {asked} new tokens, and the model's context is {context}",
                "evaluate another task, or a model with a longer context",
            )


@cache
def _load(name: str, allow_code: bool) -> dict[str, Any]:
    """The tasks that a name stands for, each with its data and one prompt."""
    task = find_task(name)
    if not allow_code and _declares_code(task):
        raise _forbidden(name)
    try:
        with _permission(allow_code), redirect_stderr(io.StringIO()):  # a progress bar of one row
            tasks: dict[str, Any] = _manager().load([task])["tasks"]
            for one in tasks.values():
                one.build_all_requests(limit=1)
    except FAILURES as error:
        raise MiloraError(
            f"task {name} cannot be loaded: {type(error).__name__}: {_first_line(error)}",
            "make its data and libraries available here, or leave it out of evaluation.tasks",
        ) from error
    if not allow_code and any(getattr(one, "UNSAFE_CODE", False) for one in tasks.values()):
        raise _forbidden(name)
    if any(getattr(one, "MULTIMODAL", False) for one in tasks.values()):
        raise MiloraError(f"task {name} asks about images or sounds", "leave it out of evaluation.tasks")
    return tasks


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _declares_code(task: str | dict[str, Any]) -> bool:
    """Whether a task's file says that it runs code; that of a group is known only once its tasks are loaded."""
    if isinstance(task, dict):
        return bool(task.get("unsafe_code"))
    path = _manager().task_index[task].yaml_path
    return path is not None and bool(load_yaml(path, resolve_func=False).get("unsafe_code"))


def _forbidden(name: str) -> MiloraError:
    return MiloraError(
        f"{name} is a task of lm-eval that runs programs which a model wrote on this machine, without milora's sandbox",
        "set evaluation.allow_code_execution=true (--allow-code-execution), best in a container without secrets",
    )


@contextmanager
def _permission(allow_code: bool) -> Iterator[None]:
    """Let the metrics of the library `evaluate` run code, or not."""
    if not allow_code:
        yield
        return
    before = os.environ.get(ALLOW_CODE)
    os.environ[ALLOW_CODE] = "1"
    try:
        yield
    finally:
        os.environ.pop(ALLOW_CODE)
        if before is not None:
            os.environ[ALLOW_CODE] = before


@dataclass(frozen=True, slots=True)
class Found:
    """A task's metrics, the headline among them, in which unit they are, its samples, and how many were cut."""

    metrics: dict[str, Metric]
    primary: str
    unit: Unit
    samples: list[Sample]
    unfit: int


def score_task(harness: HFLM, name: str, section: EvaluationSection) -> Found | None:
    """Score a task under the harness's own protocol; its first metric is the headline.

    Only the first process of a machine gets something.

    Raises:
        MiloraError: the task is a group of tasks without a metric of its own.
    """
    task = find_task(name)
    # It would ask git about the user's working folder, and git prints "fatal: not a git repository".
    unasked = patch.object(evaluator, "get_git_commit_hash", lambda: None)
    with _permission(section.allow_code_execution), unasked:
        results = evaluator.simple_evaluate(
            model=harness,
            tasks=[task],
            limit=section.limit,
            num_fewshot=section.num_fewshot,
            apply_chat_template=section.apply_chat_template,
            confirm_run_unsafe_code=section.allow_code_execution,
            task_manager=_manager(),
            bootstrap_iters=1000,
        )
    if results is None:
        return None
    title = name if isinstance(task, str) else task["task"]
    found = results["groups"][title] if title in results.get("groups", {}) else results["results"][title]
    rows = [row for rows in results["samples"].values() for row in rows]
    samples = [sample for rows in results["samples"].values() for sample in _read_samples(rows)]
    metrics = _read_metrics(found, samples)
    if not metrics:
        raise MiloraError(f"{name} is a group without a metric of its own", "name its tasks in evaluation.tasks")
    primary = next(iter(metrics))
    return Found(
        metrics,
        primary,
        "number" if "perplexity" in primary or "bits" in primary else "share",
        samples,
        unfit=len({(row["doc_hash"], row["prompt_hash"]) for row in rows if _is_cut(harness, row["arguments"])}),
    )


def _read_metrics(found: dict[str, Any], samples: Sequence[Sample]) -> dict[str, Metric]:
    metrics = {}
    for key, value in found.items():
        metric, _, kind = key.partition(",")
        if isinstance(value, float) and not metric.endswith("_stderr"):
            error = found.get(f"{metric}_stderr,{kind}")
            metrics[_title(metric, kind)] = _measure(value, error, samples, _title(metric, kind))
    return metrics


def _is_cut(harness: HFLM, requests: Sequence[tuple[Any, ...]]) -> bool:
    """Whether the harness cuts the start of a prompt; text alone, for a rolling likelihood, it reads in windows."""
    for text, *rest in requests:
        if rest and isinstance(rest[0], dict):
            room = harness.max_length - rest[0].get("max_gen_toks", harness.max_gen_toks)
        else:
            text, room = text + "".join(rest), harness.max_length + 1
        if rest and len(harness.tok_encode(text)) > room:
            return True
    return False


def _measure(value: float, error: Any, samples: Sequence[Sample], title: str) -> Metric:
    """A metric is ours if it is the mean of its samples' grades; of others the harness's own error is all there is."""
    found = [sample.grades[title].score for sample in samples if title in sample.grades]
    grades = [score for score in found if score is not None]
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
