"""The safetensors files of a checkpoint on disk: one tensor read, or written over, at a time."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from milora.method.errors import MiloraError
from milora.method.files import view_bytes

DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
# What belongs to a model beside its weights: neither pickles nor code.
COMPANIONS = ("*.json", "*.txt", "*.model", "*.jinja", "LICENSE*", "NOTICE*")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's folder, and in which of its safetensors files each tensor lies."""

    folder: Path
    files: dict[str, str]

    @property
    def shards(self) -> list[str]:
        return sorted(set(self.files.values()))

    @property
    def companions(self) -> list[Path]:
        """The config, the tokenizer, the index and the like."""
        found = {file for pattern in COMPANIONS for file in self.folder.glob(pattern) if file.is_file()}
        return sorted(file for file in found if not file.name.endswith(".bin.index.json"))

    def read(self, name: str) -> Tensor:
        return read_tensor(self.folder / self.files[name], name)

    def describe(self, name: str) -> tuple[tuple[int, ...], str]:
        """Return a tensor's shape and dtype, as safetensors calls it, without reading its values."""
        with safe_open(self.folder / self.files[name], "pt") as file:
            part = file.get_slice(name)
            return tuple(part.get_shape()), part.get_dtype()


def open_checkpoint(folder: Path) -> Checkpoint:
    """Find every tensor of a checkpoint, in one file or in several with an index.

    Raises:
        MiloraError: there are no safetensors, a file is missing or not whole, or the index names what is not there.
    """
    single, index = folder / SAFE_WEIGHTS_NAME, folder / SAFE_WEIGHTS_INDEX_NAME
    if single.is_file():
        return Checkpoint(folder, dict.fromkeys(_tensor_names(single), SAFE_WEIGHTS_NAME))
    if not index.is_file():
        pickled = ", only pickles" if [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")] else ""
        raise MiloraError(
            f"{folder} holds no weights in safetensors{pickled}",
            "convert them once: AutoModelForCausalLM.from_pretrained(…).save_pretrained(…)",
        )
    try:
        files: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (json.JSONDecodeError, KeyError) as error:
        raise MiloraError(f"{index} is no index of weights: {error!r}", _AGAIN) from error
    checkpoint = Checkpoint(folder, files)
    for shard in checkpoint.shards:
        if Path(shard).name != shard:
            raise MiloraError(f"{index} names {shard}, which lies in another folder", _AGAIN)
        if not (folder / shard).is_file():
            raise MiloraError(f"{folder} lacks {shard}, which its index names", _AGAIN)
        absent = {name for name, file in files.items() if file == shard} - _tensor_names(folder / shard)
        if absent:
            raise MiloraError(f"{shard} lacks {min(absent)}, which {index} places there", _AGAIN)
    return checkpoint


_AGAIN = "download or save the checkpoint again"


def _tensor_names(path: Path) -> set[str]:
    try:
        with safe_open(path, "pt") as file:
            return set(file.keys())
    except SafetensorError as error:
        raise MiloraError(f"{path} is not whole: {error}", _AGAIN) from error


def read_tensor(path: Path, name: str) -> Tensor:
    """Read one tensor. The file is opened for it alone: what is mapped goes with the tensor."""
    with safe_open(path, "pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor


def create_tensors(path: Path, tensors: dict[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
    """Make a file that holds tensors of these shapes and dtypes, all zeros, without ever holding them in memory."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (shape, dtype) in sorted(tensors.items()):
        start, end = end, end + dtype.itemsize * torch.Size(shape).numel()
        header[name] = {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + end)


@contextmanager
def overwriting(path: Path) -> Iterator[Callable[[str, Tensor], None]]:
    """Give a function that writes a tensor over the one of that name; at the end everything is on the disk."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))

        def write(name: str, tensor: Tensor) -> None:
            start, end = header[name]["data_offsets"]
            data = view_bytes(tensor)
            assert len(data) == end - start and DTYPES[tensor.dtype] == header[name]["dtype"]
            file.seek(8 + length + start)
            file.write(data)

        yield write
        file.flush()
        os.fsync(file.fileno())
