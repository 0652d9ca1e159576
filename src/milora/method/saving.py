"""What PEFT writes of an adapter, from a model that others may have wrapped."""

import re
import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path

from peft import LoraConfig, PeftModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from milora.method.errors import MiloraError
from milora.method.variant.config import is_saved_milora

CARD = "README.md"
# torch.compile, FSDP and activation checkpointing add these to the names of the modules inside of them.
WRAPPERS = re.compile(r"\._orig_mod|\._fsdp_wrapped_module|\._checkpoint_wrapped_module")


def unwrap(model: nn.Module) -> PeftModel:
    """Return the PeftModel inside of what torch.compile, DDP, DeepSpeed or accelerate made of it.

    Raises:
        MiloraError: it is not a PeftModel, but for example the base model inside of one.
    """
    while not isinstance(model, PeftModel):
        inner = [part for name, part in model.named_children() if name in ("_orig_mod", "module")]
        if not inner:
            raise MiloraError(
                f"{type(model).__name__} is not a PeftModel",
                "pass what get_peft_model or load_milora returned, not a part of it",
            )
        model = inner[0]
    return model


def check_replaceable(path: Path) -> None:
    """Raise if a folder contains an adapter from which MiLoRA's training can continue: an export would replace it."""
    if (path / CONFIG_NAME).is_file() and is_saved_milora(LoraConfig.from_pretrained(str(path))):
        raise MiloraError(
            f"{path} contains a raw MiLoRA adapter, which the export would replace",
            "write the export to another folder",
        )


def remove_wrappers(name: str) -> str:
    """Return the name that a module or a tensor has in the model itself."""
    return WRAPPERS.sub("", name)


def save_as_peft(
    folder: Path, target: Path, model: PeftModel, adapter_name: str, state: dict[str, Tensor]
) -> list[str]:
    """Write what PEFT would write to `target` if the model had this state; return the tensors that are not factors.

    The names in `state` are the model's own.
    """
    if (target / CARD).is_file():
        shutil.copy(target / CARD, folder)  # PEFT adds to it
    # PEFT goes by the names of modules, with those of wrappers in them.
    wrapped = {remove_wrappers(name): name for name, _ in model.named_modules()}
    parts = {key: key.rpartition(".") for key in state}
    state = {f"{wrapped.get(parts[key][0], parts[key][0])}.{parts[key][2]}": value for key, value in state.items()}
    with warnings.catch_warnings():
        # The caller says which whole tensors the adapter contains.
        warnings.filterwarnings("ignore", message="Setting `save_embedding_layers` to `True`")
        model.save_pretrained(str(folder), selected_adapters=[adapter_name], state_dict=state)
    if adapter_name != "default":
        for file in (folder / adapter_name).iterdir():
            file.replace(folder / file.name)
        (folder / adapter_name).rmdir()
    file = folder / SAFETENSORS_WEIGHTS_NAME
    saved = load_file(file)
    if any(remove_wrappers(name) != name for name in saved):
        saved = {remove_wrappers(name): tensor.clone() for name, tensor in saved.items()}  # the file is mapped
        save_file(saved, file, metadata={"format": "pt"})
    return find_others(saved)


def find_others(names: Iterable[str]) -> list[str]:
    """Return which tensors of an adapter are neither factors nor PEFT's copies of targeted embeddings."""
    return sorted(name for name in names if ".lora_" not in name and ".base_layer." not in name)
