"""An ordinary LoRA → llama.cpp's adapter, in GGUF.

The tensors are those of llama.cpp's own convert_lora_to_gguf.py, byte for byte. That script ignores rsLoRA, rank
patterns and alpha patterns; here they are part of B.
"""

import importlib.util
from pathlib import Path

from peft import LoraConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedConfig

from milora.method.errors import MiloraError
from milora.method.files import replacing
from milora.models.card import name_base

# transformers' model_type → gguf's architecture, as far as each linear layer is one tensor there, unchanged or with its
# rows in another order.
ARCHITECTURES = {
    "cohere": "COMMAND_R",
    "cohere2": "COHERE2",
    "gemma": "GEMMA",
    "gemma2": "GEMMA2",
    "gemma3_text": "GEMMA3",
    "gpt2": "GPT2",
    "granite": "GRANITE",
    "llama": "LLAMA",
    "mistral": "LLAMA",
    "olmo": "OLMO",
    "olmo2": "OLMO2",
    "phi": "PHI2",
    "phi3": "PHI3",
    "qwen2": "QWEN2",
    "qwen3": "QWEN3",
    "smollm3": "SMOLLM3",
    "starcoder2": "STARCODER2",
}
# Rotary embeddings turn pairs of rows: i and i + d/2 of a head in transformers, neighbors in these of llama.cpp's.
NEIGHBORS = ("GRANITE", "LLAMA", "OLMO", "SMOLLM3")
FILE = "adapter.gguf"
MERGE = "use --as merged, and convert that with llama.cpp's convert_hf_to_gguf.py"


def find_architecture(model: PreTrainedConfig) -> str:
    """Return gguf's word for a model's architecture.

    Raises:
        MiloraError: it is not one that adapters are written for, or the package gguf is not installed.
    """
    if model.model_type not in ARCHITECTURES:
        raise MiloraError(
            f"--as gguf is written for {', '.join(ARCHITECTURES)}, not for {model.model_type}",
            "try llama.cpp's convert_lora_to_gguf.py with the folder that --as lora writes",
        )
    if importlib.util.find_spec("gguf") is None:
        raise MiloraError("--as gguf needs the package gguf", "pip install 'milora[train]'")
    return ARCHITECTURES[model.model_type]


def write_gguf(folder: Path, lora: Path, model: PreTrainedConfig) -> Path:
    """Write the LoRA in the folder `lora`, in PEFT's layout, as a float32 adapter of llama.cpp; return its file.

    Raises:
        MiloraError: see `find_architecture`; or the adapter contains what llama.cpp's adapters cannot.
    """
    architecture = find_architecture(model)
    config = LoraConfig.from_pretrained(str(lora))
    layers = _pair_factors(config, load_file(lora / SAFETENSORS_WEIGHTS_NAME))
    import gguf  # optional

    arch = gguf.MODEL_ARCH[architecture]
    writer = gguf.GGUFWriter(None, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, name_base(config.base_model_name_or_path or ""))
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(config.lora_alpha))
    names = gguf.get_tensor_name_map(arch, model.num_hidden_layers)
    for layer, (A, B) in layers.items():
        name = names.get_name(layer)
        if name is None or layer == "lm_head" and model.tie_word_embeddings:
            raise MiloraError(f"{layer}: llama.cpp's {model.model_type} does not have this tensor", MERGE)
        B = B.float() * _fold(config, layer, B.shape[1])
        if architecture in NEIGHBORS:
            B = _bring_pairs_together(layer, B, model)
        writer.add_tensor(f"{name}.weight.lora_a", A.float().numpy())
        writer.add_tensor(f"{name}.weight.lora_b", B.contiguous().numpy())
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / FILE) as unfinished:
        writer.write_header_to_file(unfinished)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return folder / FILE


def _pair_factors(config: LoraConfig, state: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return A and B of each layer by name.

    Raises:
        MiloraError: there is something else that llama.cpp would not apply.
    """
    if config.use_dora:
        raise MiloraError("llama.cpp does not support DoRA", MERGE)
    pairs = {}
    for key, A in state.items():
        layer, is_A, _ = key.rpartition(".lora_A.weight")
        if is_A:
            pairs[layer.removeprefix("base_model.model.")] = A, state[f"{layer}.lora_B.weight"]
        elif not key.endswith(".lora_B.weight") and ".base_layer." not in key:  # PEFT's copy of a targeted lm_head
            raise MiloraError(f"llama.cpp's adapters contain factors of linear layers alone, and not {key}", MERGE)
    return pairs


def _fold(config: LoraConfig, layer: str, rank: int) -> float:
    """Return the layer's scaling relative to lora_alpha / rank, which llama.cpp multiplies by."""
    patterns = config.alpha_pattern or {}
    alpha = patterns.get(get_pattern_key(list(patterns), layer), config.lora_alpha)
    scaling = alpha / rank**0.5 if config.use_rslora else alpha / rank
    return float(scaling / (config.lora_alpha / rank))


def _bring_pairs_together(layer: str, B: Tensor, model: PreTrainedConfig) -> Tensor:
    """Return B `(out, r)` with the rows of q_proj and k_proj in llama.cpp's order."""
    heads = {"q_proj": model.num_attention_heads, "k_proj": model.num_key_value_heads}.get(layer.rpartition(".")[2])
    if heads is None:
        return B
    return B.reshape(heads, 2, -1, B.shape[1]).swapaxes(1, 2).reshape(B.shape)
