"""Write a finished run as a result of PEFT's method comparison on MetaMathQA, marked as run by us.

    milora run peft-metamathqa
    python benchmarks/peft_result.py RUN [KEY=VALUE …] [--out FILE.json]

KEY=VALUE are those of `milora eval`, for scores under other settings than the run's own. The result has the keys of
PEFT's files in method_comparison/MetaMathQA/results, which its own code loads; -1 is a number that milora does not
measure.
"""

import argparse
import platform
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from peft.utils import CONFIG_NAME

from milora.evaluation.evaluate import find_scores
from milora.evaluation.target import target_of_run
from milora.method.errors import MiloraError
from milora.method.files import format_json, read_json, write_json
from milora.run.directory import RunDirectory
from milora.run.environment import Environment
from milora.run.named import open_trained
from milora.run.recipe import with_overrides
from milora.run.records import TrainingRecord

TASK = "gsm8k"
GRADER = "corrected"  # exact equality of numbers, as PEFT's own
LIBRARIES = ("transformers", "peft", "datasets", "bitsandbytes", "torch")
LAST = 250  # steps, over which PEFT averages the training loss
NOT_MEASURED = -1


def describe_result(run: RunDirectory, overrides: list[str]) -> dict[str, Any]:
    """Return the run in the keys of PEFT's result files.

    Raises:
        MiloraError: it was not scored on GSM8K under these settings.
    """
    record, environment = run.read(TrainingRecord), run.read(Environment)
    section = with_overrides(run.recipe.evaluation, {}, overrides)
    scores = next((found for found in find_scores(target_of_run(run), section) if found.task == TASK), None)
    if scores is None:
        raise MiloraError(f"{run.path} was not scored on {TASK} under these settings", f"milora eval {run.path}")
    config = run.adapter / CONFIG_NAME
    losses = [one.loss for one in record.losses][-LAST:]
    test = {
        "step": record.steps,
        "test accuracy": scores.metrics[GRADER].value,
        "train loss": sum(losses) / len(losses),
        "train samples": record.steps * run.recipe.training.batch_size,
        "train total tokens": round(record.tokens_per_step * record.steps),
    }
    return {
        "run_info": {
            "run_by": f"milora {environment.versions['milora']}: not PEFT's maintainers, and not their script",
            "created_at": datetime.fromtimestamp(run.trained.stat().st_mtime, UTC).isoformat(timespec="seconds"),
            "total_time": record.seconds,
            "experiment_name": f"milora/{run.path.name}",
            "peft_branch": "milora",
            "train_config": describe_settings(run),
            "peft_config": read_json(config) if config.is_file() else None,
            "error_msg": "",
        },
        "train_info": {
            "accelerator_memory_reserved_avg": NOT_MEASURED,
            "accelerator_memory_max": record.peak_memory,
            "accelerator_memory_reserved_99th": NOT_MEASURED,
            "train_time": record.seconds_per_step * record.steps,
            "file_size": sum(file.stat().st_size for file in run.trained.glob("*.safetensors")),
            "num_trainable_params": record.parameters.trainable,
            "num_total_params": record.parameters.total,
            "status": "success",
            "metrics": [test],
        },
        "meta_info": {
            "package_info": {f"{name}-version": environment.versions.get(name) for name in LIBRARIES},
            "system_info": {
                "system": platform.system(),
                "machine": platform.machine(),
                "processor": environment.processor,
                "accelerator": ", ".join(environment.gpus) or "none",
            },
            "milora": {"commit": environment.commit, "scored": scores.count, "settings": asdict(scores.settings)},
        },
    }


def describe_settings(run: RunDirectory) -> dict[str, Any]:
    """The recipe in the keys of PEFT's training parameters."""
    recipe = run.recipe
    training = recipe.training
    return {
        "model_id": recipe.model.name,
        "dtype": recipe.model.dtype,
        "max_seq_length": training.max_length,
        "batch_size": training.batch_size,
        "max_steps": training.max_steps,
        "query_template": recipe.data.template,
        "seed": recipe.seed,
        "grad_norm_clip": training.max_grad_norm,
        "optimizer_type": training.optimizer,
        "optimizer_kwargs": {"lr": training.learning_rate, "weight_decay": training.weight_decay},
        "lr_scheduler": training.schedule,
        "generation_kwargs": {"max_new_tokens": recipe.evaluation.max_new_tokens},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, metavar="JSON")
    options = parser.parse_args()
    run, _ = open_trained(options.run)
    result = describe_result(run, options.overrides)
    if options.out:
        write_json(options.out, result)
    else:
        print(format_json(result, indent=1))


if __name__ == "__main__":
    main()
