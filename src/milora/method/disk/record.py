"""What a start was made with, by which a finished or unfinished one is recognized."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peft import LoraConfig
from peft.utils import CONFIG_NAME
from transformers.utils import CONFIG_NAME as MODEL_CONFIG_NAME

from milora.method.disk.shards import Checkpoint
from milora.method.errors import MiloraError
from milora.method.factors import Choice
from milora.method.files import read_json
from milora.method.options import Form

ADAPTER = "adapter"
RECORD = "initialization.json"
LAST = (CONFIG_NAME, MODEL_CONFIG_NAME)  # if either exists, all other files do


def describe_options(config: LoraConfig, choice: Choice, form: Form, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return everything that decides what is written."""
    modules, parameters = config.target_modules, sorted(config.target_parameters or ())
    states = [(shard, (checkpoint.folder / shard).stat()) for shard in checkpoint.shards]
    return {
        "model": config.base_model_name_or_path,
        "weights": digest([(shard, state.st_size, state.st_mtime_ns) for shard, state in states]),
        "form": form,
        **asdict(choice),
        "rank": config.r,
        "alpha": config.lora_alpha,
        "rslora": config.use_rslora,
        "targets": modules if isinstance(modules, str) else sorted(modules or ()),
        "rank_pattern": config.rank_pattern,
        "alpha_pattern": config.alpha_pattern,
        **({"target_parameters": parameters} if parameters else {}),
        **({"revision": config.revision} if config.revision else {}),
    }


def digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def is_finished(output: Path, options: dict[str, Any]) -> bool:
    """Return whether `output` contains all files that these options give.

    Raises:
        MiloraError: it contains a model or an adapter that was made with other options.
    """
    present = [name for name in (*LAST, ADAPTER) if (output / name).exists()]
    if not present:
        return False
    record = output / RECORD
    written = read_json(record).get("options") if record.is_file() else None
    if written == options:
        return True
    if written is None:
        raise MiloraError(f"{output} contains {present[0]} of another model", "write to another folder with -o")
    differences = [
        f"{key}={written.get(key)!r}, not {value!r}" for key, value in options.items() if written.get(key) != value
    ]
    raise MiloraError(f"{output} was made with {'; '.join(differences)}", "write to another folder with -o")
