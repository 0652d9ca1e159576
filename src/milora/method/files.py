"""Atomic file writes, and digests of file contents."""

import hashlib
import json
import math
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; the file written there is synced and replaces `path` at the end.

    After a crash at any moment, `path` is the old file or the new one.
    """
    unfinished = path.with_name(f".{path.name}-{os.getpid()}-{threading.get_ident()}")
    try:
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder; its files move into `folder` once all of them are written."""
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder))
    try:
        yield unfinished
        for file in unfinished.iterdir():
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(unfinished)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically; see `replacing`."""
    with replacing(path) as unfinished:
        unfinished.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, content: Any) -> None:
    write_text(path, format_json(content, indent=1) + "\n")


def format_json(content: Any, indent: int | None = None) -> str:
    """Return plain data as JSON, which has no NaN and no infinity: they are written as strings, such as "NaN".

    `float("NaN")` reads them back, and so do the types of records.
    """
    return json.dumps(_spell(content), indent=indent, ensure_ascii=False, allow_nan=False)


def _spell(content: Any) -> Any:
    """Plain data with strings for the numbers that JSON does not have."""
    if isinstance(content, dict):
        return {key: _spell(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_spell(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return "NaN" if math.isnan(content) else "Infinity" if content > 0 else "-Infinity"
    return content


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_whole_lines(path: Path) -> Iterator[Any]:
    """Yield what each line of a JSON Lines file contains; a line that a kill left half-written is left out."""
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            content = json.loads(line)
        except json.JSONDecodeError:
            continue
        yield content


def hash_file(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def view_bytes(tensor: "Tensor") -> memoryview:
    """Return the tensor's bytes, without a copy if it is contiguous and on the CPU."""
    import torch  # slow to import, and writing files does not need it

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
