"""What a model's name in a recipe stands for: a hub name, a local folder, or the embedded one; and its config."""

import difflib
from pathlib import Path

from huggingface_hub import snapshot_download
from transformers import AutoConfig, PreTrainedConfig

from milora.method.disk.conversion import is_residual_model
from milora.method.disk.shards import COMPANIONS
from milora.method.errors import MiloraError
from milora.models.embedded import EMBEDDED, convert_once, locate_embedded_model
from milora.models.failures import NAME_A_MODEL, loading, unavailable
from milora.models.small_llava import SMALL_LLAVA, locate_small_llava
from milora.run.paths import looks_local
from milora.run.sections import ModelSection

LOCAL = "local:"  # no name on the hub has a colon


def load_config(section: ModelSection) -> PreTrainedConfig:
    """Return the model's config, as `load_model` reads it."""
    name = resolve_model(section.name)
    with loading(section.name):
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            name, revision=section.revision, trust_remote_code=section.trust_remote_code
        )
    return config


def locate_checkpoint(section: ModelSection) -> Path:
    """Return the folder of a model's safetensors, config and tokenizer, downloaded first if it is on the hub.

    Raises:
        MiloraError: the model does not exist.
    """
    name = resolve_model(section.name)
    if Path(name).is_dir():
        return Path(name)
    with loading(section.name):
        # Some repositories contain their weights a second time under these names.
        folder = snapshot_download(
            name,
            revision=section.revision,
            allow_patterns=["*.safetensors", *COMPANIONS],
            ignore_patterns=["*/*", "consolidated*"],
        )
    return Path(folder)


def resolve_model(name: str) -> str:
    """Return what transformers loads: the name itself, or the folder that the embedded model or a GGUF file became.

    Raises:
        MiloraError: a folder that does not exist, or that contains a residual model; or an exported adapter's name of
            a local folder.
    """
    if name == EMBEDDED:
        return str(locate_embedded_model())
    if name == SMALL_LLAVA:
        return str(locate_small_llava())
    if name.startswith(LOCAL):
        raise MiloraError(
            f"the base is a local folder called {name.removeprefix(LOCAL)}, and the adapter does not say where it is",
            "write its path into base_model_name_or_path of the adapter's adapter_config.json",
        )
    folder = Path(name)
    if folder.suffix.lower() == ".gguf" and folder.is_file():
        with loading(name):
            return str(convert_once(folder))
    if not folder.is_dir() and (looks_local(name) or folder.suffix.lower() == ".gguf"):
        here = [path.name for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
        near = difflib.get_close_matches(folder.name, here, n=1)
        # The hub is not asked.
        raise unavailable(name, "the folder does not exist", f"did you mean {near[0]}?" if near else NAME_A_MODEL)
    with loading(name):
        is_residual = is_residual_model(folder)
    if is_residual:
        raise MiloraError(
            f"{name} is a residual model, W − s·B₀A₀, which means nothing without its adapter",
            "name the model that it was made from; milora export --initial converts an adapter trained on it",
        )
    return name
