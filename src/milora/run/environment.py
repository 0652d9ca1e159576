"""Where a run ran: versions, hardware, and the commit of the package."""

import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

TRAINING_LIBRARIES = (
    "milora",
    "torch",
    "transformers",
    "peft",
    "trl",
    "accelerate",
    "datasets",
    "deepspeed",
    "bitsandbytes",
)


@dataclass(frozen=True, slots=True)
class Environment:
    """Versions by library, the processor, its cores, the GPUs, and the package's commit if it runs from a checkout.

    The commit of a checkout with uncommitted changes ends in `-dirty`.
    """

    versions: dict[str, str]
    processor: str
    cores: int
    gpus: list[str]
    commit: str | None


def describe_environment() -> Environment:
    """Return where this process runs."""
    import torch  # heavy, and commands that only read do not need it

    return Environment(
        versions={"python": platform.python_version(), **list_versions(), **_versions_of("lm-eval")},
        processor=_name_processor(),
        cores=os.cpu_count() or 1,
        gpus=[torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        commit=_find_commit(),
    )


def list_versions() -> dict[str, str]:
    """Return the versions of the libraries that decide what training gives."""
    return _versions_of(*TRAINING_LIBRARIES)


def _versions_of(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _name_processor() -> str:
    # On Linux `platform` knows only the architecture.
    described = Path("/proc/cpuinfo")
    lines = described.read_text(encoding="utf-8").splitlines() if described.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _find_commit() -> str | None:
    """The commit of the repository that this file is tracked in: others may only contain the virtual environment."""
    file = Path(__file__)
    git = ["git", "-C", str(file.parent)]
    try:
        tracked = subprocess.run([*git, "ls-files", "--error-unmatch", file.name], capture_output=True, check=False)
        if tracked.returncode:
            return None
        found = subprocess.run(
            [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
        )
        return found.stdout.strip()
    except FileNotFoundError:  # no git
        return None
