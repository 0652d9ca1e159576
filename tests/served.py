"""A real server in the tests: llama.cpp's own, in this process, with the embedded model."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import torch

from milora.models.embedded import EMBEDDED, locate_gguf

CONTEXT = 2048  # tokens of each of the slots
SLOTS = 2


@dataclass(frozen=True)
class LlamaServer:
    """Where it listens (…/v1), and the name of its model: SmolLM2-135M-Instruct in 4 bits."""

    url: str
    model: str = EMBEDDED


@contextmanager
def serving(model: Path | None = None, *, adapter: Path | None = None, context: int = CONTEXT) -> Iterator[LlamaServer]:
    """Serve a model, by default the embedded one, on a free port of the loopback interface.

    With an adapter, whose answers are compared to PEFT's, keys and values are cached in float32.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model or locate_gguf())
    params.model_alias = {EMBEDDED}
    params.n_ctx, params.n_parallel = context * SLOTS, SLOTS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.port = params.verbosity = 0
    params.warmup = False
    if adapter:
        info = xllamacpp.CommonAdapterLoraInfo()
        info.path, info.scale = str(adapter), 1.0
        params.lora_adapters = [info]
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    running = xllamacpp.Server(params)
    yield LlamaServer(f"{running.listening_address}/v1")
    del running  # which stops it


def write_float_gguf(target: Path, layers: int) -> None:
    """Write the embedded model's first layers in float32, with its tokenizer."""
    read = gguf.GGUFReader(locate_gguf())
    architecture = read.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for name, field in read.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        value = layers if name == f"{architecture}.block_count" else field.contents()
        element = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(name, value, field.types[0], element)
    for tensor in read.tensors:
        if not tensor.name.startswith("blk.") or int(tensor.name.split(".")[1]) < layers:
            writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_gguf(file: str | Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return a file's keys, and its tensors by name as torch orders their dimensions."""
    read = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in read.fields.items()}
    return fields, {tensor.name: torch.tensor(tensor.data) for tensor in read.tensors}
