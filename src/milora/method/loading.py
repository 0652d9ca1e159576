"""Loads a saved MiLoRA adapter as a PeftModel."""

import difflib
import re
import warnings
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from milora.method.errors import MiloraError, MiloraWarning
from milora.method.initialization import start_layers
from milora.method.layers import ready_layers
from milora.method.names import rename_stored
from milora.method.options import Form
from milora.method.origin import UNKNOWN, check_origins
from milora.method.unsupported import adapter_layers
from milora.method.variant.config import is_saved_certified, is_saved_milora
from milora.method.variant.linear import INITIAL, INITIAL_A, INITIAL_B, ORIGIN
from milora.method.variant.weights import decode_description


def load_milora(
    base_model: PreTrainedModel | PeftModel,
    path: str | Path,
    *,
    adapter_name: str = "default",
    form: Form = "intact",
    is_trainable: bool = False,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
    autocast_adapter_dtype: bool = True,
    torch_device: str | torch.device = "cpu",
) -> PeftModel:
    """Load an adapter, saved by `save_pretrained` or a trainer's checkpoint, onto the base that it was made from.

    The file contains digests of the weights that the adapter targets. They must be equal if the base has the dtype in
    which the adapter was made; if it has another, or is quantized, a warning says what could not be proven. Weights
    without an adapter are not checked.

    Args:
        base_model: the untouched base, or a PeftModel to which the adapter is added as PEFT's `load_adapter` does: the
            active adapter, its trainability and the mode of the model do not change.
        path: a folder, or the name of a repository on the hub, `owner/name`.
        adapter_name: the name of the loaded adapter.
        form: "residual" replaces W by W − s·B₀A₀ again, to resume a residual run bit for bit; see
            `initialize_lora_milora_weights`.
        is_trainable: False freezes the loaded adapter, and puts a base into eval mode, as in PEFT.
        revision: a branch, tag, or commit of the repository on the hub.
        subfolder: a folder inside the folder or the repository.
        token: what the hub is asked with, as in huggingface_hub.
        autocast_adapter_dtype: False keeps the adapter in the dtype of the base, as in PEFT.
        torch_device: where the file is read to; the adapter is then on the device of each layer.

    Raises:
        MiloraError: the path does not contain a MiLoRA adapter in safetensors, or the adapter was made from another
            base. `base_model` is then unchanged.
    """
    folder = _locate(path, revision, subfolder, token)
    config, state = _read(folder, torch_device)
    certified = is_saved_certified(config)
    config.init_lora_weights = True
    config.inference_mode = not is_trainable
    is_host = isinstance(base_model, PeftModel)
    if isinstance(base_model, PeftModel):
        if adapter_name in base_model.peft_config:
            raise MiloraError(f"the model has an adapter {adapter_name!r} already", "pass another adapter_name")
        model = base_model
        model.add_adapter(adapter_name, config, autocast_adapter_dtype=autocast_adapter_dtype)
    else:
        model = get_peft_model(base_model, config, adapter_name, autocast_adapter_dtype=autocast_adapter_dtype)
    state = rename_stored(model, state)
    try:
        unproven = _start_layers(model, state, adapter_name, form, certified)
    except MiloraError:
        if is_host:
            model.delete_adapter(adapter_name)
        else:
            model.unload()
        raise
    for sentence in unproven:
        warnings.warn(sentence, MiloraWarning, stacklevel=2)
    set_peft_model_state_dict(model, state, adapter_name)
    model.set_requires_grad(adapter_name, is_trainable)
    return model if is_trainable or is_host else model.eval()


def _locate(path: str | Path, revision: str | None, subfolder: str | None, token: str | bool | None) -> Path:
    """Return the adapter's folder, downloaded first if `path` is not one and has the form of a repository's name."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise MiloraError(f"revision={revision!r}: {path} is a local folder, which has none", "leave it out")
    elif isinstance(path, Path) or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path) or folder.parent.is_dir():
        here = [found.name for found in folder.parent.iterdir()] if folder.parent.is_dir() else []
        near = difflib.get_close_matches(folder.name, here, n=1)
        hint = f"did you mean {folder.parent / near[0]}?" if near else "pass a folder, or owner/name on the hub"
        raise MiloraError(f"there is no folder {path}", hint)
    else:
        pattern = f"{subfolder}/adapter_*" if subfolder else "adapter_*"
        folder = Path(snapshot_download(path, revision=revision, token=token, allow_patterns=[pattern]))
    return folder / subfolder if subfolder else folder


def _read(folder: Path, device: str | torch.device) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Return the config and the tensors of a MiLoRA adapter."""
    weights_file = folder / SAFETENSORS_WEIGHTS_NAME
    for file in (weights_file, folder / CONFIG_NAME):
        if not file.is_file():
            raise MiloraError(f"{folder} does not contain {file.name}", "pass a folder that save_pretrained wrote")
    config = LoraConfig.from_pretrained(str(folder))
    if not is_saved_milora(config):
        raise MiloraError(f"{folder} is an ordinary adapter", "load it with PeftModel.from_pretrained")
    try:
        return config, load_file(weights_file, device=str(device))
    except SafetensorError as error:
        raise MiloraError(f"{weights_file} is incomplete: {error}", "save the adapter again") from error


def _start_layers(
    model: PeftModel, state: dict[str, Tensor], adapter_name: str, form: Form, certified: bool
) -> list[str]:
    """Check the origin of the initial factors of each layer, then attach them all; return warnings, as sentences."""
    layers, everything = ready_layers(model, adapter_name, form, "lora"), adapter_layers(model, adapter_name)
    # What was left ordinary LoRA has none of them.
    initialized = {name for name in everything if any(f"{name}.{part}.weight" in state for part in INITIAL)}
    layers = {name: layer for name, layer in layers.items() if name in initialized or not initialized}
    for name in sorted(initialized - layers.keys()):
        raise MiloraError(f"{name}: the initial factors do not fit this base model", "load the base of the adapter")
    initial, origins = {}, {}
    for name in layers:
        try:
            initial[name] = state[f"{name}.{INITIAL_A}.weight"], state[f"{name}.{INITIAL_B}.weight"]
        except KeyError as error:
            raise MiloraError(
                f"the adapter's file lacks {error}",
                "save it again; if it was trained as an ordinary LoRA with a MiLoRA adapter's config, set "
                '"init_lora_weights": true in adapter_config.json',
            ) from error
        origin = state.get(f"{name}.{ORIGIN}.weight")  # absent from adapters of before it was recorded
        origins[name] = UNKNOWN if origin is None else decode_description(origin)
    unproven = check_origins(layers, origins, initial, certified=certified)
    start_layers(model, adapter_name, layers, initial, form, origins=origins, certified=certified)
    return unproven
