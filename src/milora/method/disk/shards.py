"""The safetensors files of a checkpoint on disk, read and overwritten one tensor at a time."""

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
from milora.method.files import read_json, view_bytes

DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
STORED = {**DTYPES, torch.uint8: "U8"}
# The files of a model other than its weights, without pickles and code.
COMPANIONS = ("*.json", "*.txt", "*.model", "*.jinja", "LICENSE*", "NOTICE*")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The folder of a model, and the name of the safetensors file that contains each tensor."""

    folder: Path
    files: dict[str, str]

    @property
    def shards(self) -> list[str]:
        return sorted(set(self.files.values()))

    @property
    def companions(self) -> list[Path]:
        """The config, the tokenizer, the index, and similar files."""
        found = {file for pattern in COMPANIONS for file in self.folder.glob(pattern) if file.is_file()}
        return sorted(file for file in found if not file.name.endswith(".bin.index.json"))

    def read(self, name: str) -> Tensor:
        return read_tensor(self.folder / self.files[name], name)

    def read_matrix(self, name: str, index: int) -> Tensor:
        """Read a tensor of two dimensions, or one slice of a tensor of three."""
        with safe_open(self.folder / self.files[name], "pt") as file:
            part = file.get_slice(name)
            matrix: Tensor = part[index] if len(part.get_shape()) == 3 else part[:]
        return matrix

    def describe(self, name: str) -> tuple[tuple[int, ...], str]:
        """Return a tensor's shape and dtype, as safetensors calls it, without reading its values."""
        with safe_open(self.folder / self.files[name], "pt") as file:
            part = file.get_slice(name)
            return tuple(part.get_shape()), part.get_dtype()


def open_checkpoint(folder: Path) -> Checkpoint:
    """Find every tensor of a checkpoint, in one file or in several files with an index.

    Raises:
        MiloraError: there are no safetensors, a file is missing or incomplete, or the index names an absent tensor.
    """
    single, index = folder / SAFE_WEIGHTS_NAME, folder / SAFE_WEIGHTS_INDEX_NAME
    if single.is_file():
        return Checkpoint(folder, dict.fromkeys(_tensor_names(single), SAFE_WEIGHTS_NAME))
    if not index.is_file():
        pickled = ", only pickles" if [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")] else ""
        raise MiloraError(
            f"{folder} does not contain weights in safetensors{pickled}",
            "convert them once: AutoModelForCausalLM.from_pretrained(…).save_pretrained(…)",
        )
    try:
        files: dict[str, str] = read_json(index)["weight_map"]
    except (json.JSONDecodeError, KeyError) as error:
        raise MiloraError(f"{index} is not an index of weights: {error!r}", _AGAIN) from error
    checkpoint = Checkpoint(folder, files)
    for shard in checkpoint.shards:
        if Path(shard).name != shard:
            raise MiloraError(f"{index} names {shard}, which is in another folder", _AGAIN)
        if not (folder / shard).is_file():
            raise MiloraError(f"{folder} lacks {shard}, which its index names", _AGAIN)
        absent = {name for name, file in files.items() if file == shard} - _tensor_names(folder / shard)
        if absent:
            raise MiloraError(f"{shard} lacks {min(absent)}, which {index} says it contains", _AGAIN)
    return checkpoint


_AGAIN = "download or save the checkpoint again"


def _tensor_names(path: Path) -> set[str]:
    try:
        with safe_open(path, "pt") as file:
            return set(file.keys())
    except SafetensorError as error:
        raise MiloraError(f"{path} is incomplete: {error}", _AGAIN) from error


def read_tensor(path: Path, name: str) -> Tensor:
    """Read one tensor. The file is opened for it alone, so that its mapping is freed together with the tensor."""
    with safe_open(path, "pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor


def create_tensors(path: Path, tensors: dict[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
    """Create a file of zero tensors with these shapes and dtypes, without allocating them in memory."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (shape, dtype) in sorted(tensors.items()):
        start, end = end, end + dtype.itemsize * torch.Size(shape).numel()
        header[name] = {"dtype": STORED[dtype], "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + end)


@contextmanager
def overwriting(path: Path) -> Iterator[Callable[[str, Tensor], None]]:
    """Yield a function that overwrites a tensor by name; the file is synced at the end."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))

        def write(name: str, tensor: Tensor) -> None:
            start, end = header[name]["data_offsets"]
            data = view_bytes(tensor)
            assert len(data) == end - start and STORED[tensor.dtype] == header[name]["dtype"]
            file.seek(8 + length + start)
            file.write(data)

        yield write
        file.flush()
        os.fsync(file.fileno())
