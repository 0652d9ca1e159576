"""Base models as recipes name them: a hub name, a local folder, or the embedded one; and adapters put on them."""

import importlib.util
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from peft import PeftConfig, PeftModel, PeftType
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from milora.method.disk.shards import COMPANIONS
from milora.method.errors import MiloraError
from milora.method.layers import MARKS
from milora.method.loading import load_milora
from milora.method.options import Form
from milora.models.embedded import EMBEDDED, locate_embedded_model
from milora.run.recipe import ModelSection


def load_model(section: ModelSection) -> PreTrainedModel:
    """Load a causal language model in the section's dtype, quantized as it says.

    Raises:
        MiloraError: the model does not exist, or cannot be loaded.
    """
    name = resolve_model(section.name)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            name,
            revision=section.revision,
            dtype=getattr(torch, section.dtype),
            trust_remote_code=section.trust_remote_code,
            **_quantize(section),
        )
    except (OSError, ValueError) as error:
        raise _unavailable(section.name, error) from error
    for part in model.modules():
        if type(part).__name__ == "Linear4bit":
            # On a CPU bitsandbytes would repack the weights at the first forward pass in eval mode, and from then on
            # no gradient passes through them.
            part.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return model


def _quantize(section: ModelSection) -> dict[str, Any]:
    if section.quantization is None:
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MiloraError(
            f"model.quantization={section.quantization} needs bitsandbytes", "pip install 'milora[quantized]'"
        )
    accelerator = torch.accelerator.current_accelerator()
    config = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=section.quantization == "nf4",
        load_in_8bit=section.quantization == "int8",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=getattr(torch, section.dtype),
    )
    # Whole on this process's own device: a quantized model is not moved afterwards.
    device = f"{accelerator.type}:{os.environ.get('LOCAL_RANK', '0')}" if accelerator else "cpu"
    return {"quantization_config": config, "device_map": {"": device}}


def load_tokenizer(section: ModelSection) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer; a missing pad token becomes EOS, and masks tell the two apart."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            resolve_model(section.name), revision=section.revision, trust_remote_code=section.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise _unavailable(section.name, error) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def attach_adapter(model: PreTrainedModel, adapter: Path, form: Form = "intact") -> PeftModel:
    """Put a trained adapter, MiLoRA's or any other of PEFT's, on its base in eval mode.

    Raises:
        MiloraError: the folder does not contain an adapter, or contains one of another base.
    """
    try:
        config = PeftConfig.from_pretrained(str(adapter))
    except ValueError as error:
        raise MiloraError(
            f"{adapter} does not contain an adapter: {error}", "name a folder with adapter_config.json"
        ) from error
    if config.peft_type == PeftType.LORA and config.init_lora_weights in MARKS:
        return load_milora(model, adapter, form=form)
    with warnings.catch_warnings():
        # AdaLoRA names its ranks by parameter, and PEFT's check reads them as modules; they are applied all the same.
        warnings.filterwarnings("ignore", message="The following rank_pattern keys did not match .*lora_E")
        return PeftModel.from_pretrained(model, str(adapter)).eval()


def linear_names(section: ModelSection) -> list[str]:
    """Return the last name parts of the model's linear layers, from its config alone."""
    kinds = ("Linear", "Conv1D")
    parts = load_skeleton(section).named_modules()
    return sorted({name.rpartition(".")[2] for name, part in parts if type(part).__name__ in kinds})


def load_skeleton(section: ModelSection) -> PreTrainedModel:
    """Build the model from its config alone, its weights on the meta device: names and shapes, no values."""
    try:
        config = AutoConfig.from_pretrained(
            resolve_model(section.name), revision=section.revision, trust_remote_code=section.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise _unavailable(section.name, error) from error
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    return model


def locate_checkpoint(section: ModelSection) -> Path:
    """Return the folder of a model's safetensors, config and tokenizer, downloaded first if it is on the hub.

    Raises:
        MiloraError: the model does not exist.
    """
    name = resolve_model(section.name)
    if Path(name).is_dir():
        return Path(name)
    try:
        # Some repositories contain their weights a second time under these names.
        folder = snapshot_download(
            name,
            revision=section.revision,
            allow_patterns=["*.safetensors", *COMPANIONS],
            ignore_patterns=["*/*", "consolidated*"],
        )
    except (OSError, ValueError) as error:
        raise _unavailable(section.name, error) from error
    return Path(folder)


def resolve_model(name: str) -> str:
    """Return what transformers loads: the name itself, or the folder of the embedded model."""
    return str(locate_embedded_model()) if name == EMBEDDED else name


def _unavailable(name: str, error: Exception) -> MiloraError:
    reason = str(error).strip().splitlines()[0]
    return MiloraError(
        f"model {name!r} cannot be loaded: {reason}",
        f"name a hub model, a local folder with config.json, or {EMBEDDED}",
    )
