"""The run directory: one recipe, and everything that came of it.

runs/<name>-<digest>/
  recipe.yaml           the resolved recipe
  environment.json      versions, hardware, commit
  initialization.json   what the initialisation found
  spectra.json          singular values of a few weights
  start.json            what initialisation took
  checkpoints/          of the trainer, while it trains
  adapter/              the trained adapter; training.json beside it says that training is complete
  model/                instead of it, of full fine-tuning
  evaluation/<who>/<task>/{scores.json, samples.jsonl, completions-*.jsonl}    who: base, trained, checkpoint-N
  forgetting.json       if the recipe asks
  finished.json         of a comparison's run: the last to be written
  export/               portable forms
  report.html
"""

import fcntl
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

from milora.method.errors import MiloraError
from milora.run.files import read_json, write_json, write_text
from milora.run.launch import fail_together, is_main_process
from milora.run.recipe import Recipe, load_recipe

FINISHED = "finished.json"
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
class RunDirectory:
    path: Path
    recipe: Recipe

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def trained(self) -> Path:
        """What training wrote: the adapter, or of full fine-tuning the model."""
        return self.model if self.recipe.adapter.method == "full" else self.adapter

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def training(self) -> Path:
        """Written last: where it stands, training is complete."""
        return self.path / "training.json"

    @property
    def is_trained(self) -> bool:
        return self.training.is_file()

    @property
    def is_finished(self) -> bool:
        """Whether a comparison has trained it, scored it and measured all that its recipe asks for."""
        return (self.path / FINISHED).is_file()

    def read(self, name: str) -> Any:
        return read_json(self.path / name)

    def write(self, name: str, content: Any) -> None:
        """Write, if this is the main process of its launch."""
        if is_main_process():
            write_json(self.path / name, content)


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a folder for this process; the kernel lets go when the process ends, however it ends.

    Of the processes of one launch, the main one holds it for all; the others go on once it does.

    Raises:
        MiloraError: another process holds it, and this one does not `wait`.
    """
    with ExitStack() as stack:
        with fail_together():
            if is_main_process():
                folder.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context((folder / ".lock").open("w"))
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                except BlockingIOError as error:
                    raise MiloraError(f"another process works on {folder}", "wait for it, or stop it") from error
        yield


def locate_run(recipe: Recipe, root: Path) -> RunDirectory:
    """Return the recipe's directory under `root`, whether it is there or not."""
    return RunDirectory(root / f"{recipe.name}-{recipe.digest}", recipe)


def create_run(recipe: Recipe, root: Path) -> RunDirectory:
    """Make the recipe's directory under `root`, or return the one that is there; the main process makes it."""
    run = locate_run(recipe, root)
    if not is_main_process():
        return run
    run.path.mkdir(parents=True, exist_ok=True)
    write_text(run.path / "recipe.yaml", recipe.to_yaml())
    if not (run.path / "environment.json").is_file():
        run.write("environment.json", describe_environment())
    return run


def open_run(path: Path) -> RunDirectory:
    """Open an existing run directory.

    Raises:
        MiloraError: the folder holds no recipe.yaml.
    """
    if not (path / "recipe.yaml").is_file():
        raise MiloraError(f"{path} is no run directory: it has no recipe.yaml", "name one that `milora train` made")
    return RunDirectory(path, load_recipe(str(path / "recipe.yaml")))


def list_versions() -> dict[str, str]:
    """Return the versions of the libraries that decide what training gives."""
    return {name: version(name) for name in TRAINING_LIBRARIES if _is_installed(name)}


def describe_environment() -> dict[str, Any]:
    """Return versions, hardware and the commit of the package where it runs from a checkout."""
    import torch  # heavy, and `milora show` has no need of it

    evaluating = {"lm-eval": version("lm-eval")} if _is_installed("lm-eval") else {}
    accelerators = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "versions": {"python": platform.python_version(), **list_versions(), **evaluating},
        "hardware": {"cpu": _processor(), "cores": os.cpu_count(), "gpus": accelerators},
        "commit": commit.stdout.strip() or None,
    }


def _processor() -> str:
    # What `platform` knows of a processor on Linux is its architecture.
    described = Path("/proc/cpuinfo")
    lines = described.read_text(encoding="utf-8").splitlines() if described.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except ModuleNotFoundError:
        return False
    return True
