"""Loads a saved MiLoRA adapter as a PeftModel."""

from pathlib import Path

from huggingface_hub import snapshot_download
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from milora.method.errors import MiloraError
from milora.method.initialization import start_layers
from milora.method.layers import check_base, ready_layers
from milora.method.options import Form
from milora.method.variant.config import is_saved_certified, is_saved_milora
from milora.method.variant.linear import INITIAL_A, INITIAL_B


def load_milora(
    base_model: PreTrainedModel | PeftModel,
    path: str | Path,
    *,
    adapter_name: str = "default",
    form: Form = "intact",
    is_trainable: bool = False,
) -> PeftModel:
    """Load an adapter, saved by `save_pretrained` or a trainer's checkpoint, onto the base that it was made from.

    Args:
        base_model: the untouched base, or a PeftModel to which the adapter is added.
        path: a folder, or the name of a repository on the hub.
        adapter_name: the name of the loaded adapter, which becomes the active one.
        form: "residual" replaces W by W − s·B₀A₀ again, to resume a residual run bit for bit; see
            `initialize_lora_milora_weights`.
        is_trainable: False puts the model in eval mode with frozen adapters, as in PEFT.

    Raises:
        MiloraError: the path does not contain a MiLoRA adapter in safetensors, or the adapter was made from another
            base. `base_model` is then unchanged.
    """
    folder = Path(path)
    if not folder.exists():
        folder = Path(snapshot_download(str(path), allow_patterns=["adapter_*"]))
    weights_file = folder / SAFETENSORS_WEIGHTS_NAME
    for file in (weights_file, folder / CONFIG_NAME):
        if not file.is_file():
            raise MiloraError(f"{path} does not contain {file.name}", "pass a folder that save_pretrained wrote")
    config = LoraConfig.from_pretrained(str(folder))
    if not is_saved_milora(config):
        raise MiloraError(f"{path} is an ordinary adapter", "load it with PeftModel.from_pretrained")
    try:
        state = load_file(weights_file)
    except SafetensorError as error:
        raise MiloraError(f"{weights_file} is incomplete: {error}", "save the adapter again") from error
    certified = is_saved_certified(config)
    config.init_lora_weights = True
    config.inference_mode = not is_trainable
    if isinstance(base_model, PeftModel):
        model = base_model
        model.add_adapter(adapter_name, config)
        model.set_adapter(adapter_name)
    else:
        model = get_peft_model(base_model, config, adapter_name)

    try:
        _start_layers(model, state, adapter_name, form, certified)
    except MiloraError:
        if isinstance(base_model, PeftModel):
            model.delete_adapter(adapter_name)
        else:
            model.unload()
        raise
    set_peft_model_state_dict(model, state, adapter_name)
    return model if is_trainable else model.eval()


def _start_layers(model: PeftModel, state: dict[str, Tensor], adapter_name: str, form: Form, certified: bool) -> None:
    """Check the initial factors of each layer against its weight, unless they are uncertified, then attach them all."""
    layers = ready_layers(model, adapter_name, form)
    initial = {}
    for name, layer in layers.items():
        try:
            initial[name] = state[f"{name}.{INITIAL_A}.weight"], state[f"{name}.{INITIAL_B}.weight"]
        except KeyError as error:
            raise MiloraError(f"the adapter's file lacks {error}", "save the adapter again") from error
        if certified:
            check_base(name, layer, *initial[name])
    start_layers(model, adapter_name, layers, initial, form, certified=certified)
