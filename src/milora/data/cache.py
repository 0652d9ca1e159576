"""Prepared rows on disk: a folder for each digest of everything that decides them, whole or not there."""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import pyarrow
from transformers import PreTrainedTokenizerBase

from milora.data.rows import identify_sources
from milora.method.files import hash_file, read_json, write_json
from milora.run.identity import hash_folder
from milora.run.sections import DataSection

CONTENT = "content.json"
KEPT_DAYS = 30  # since the last use
LIBRARIES = ("transformers", "tokenizers", "datasets", "jinja2", "trl")


def digest_preparation(section: DataSection, tokenizer: PreTrainedTokenizerBase, *options: str | int) -> str:
    """Return a digest of the rows that a section names, the tokenizer, the options, and the code that reads them."""
    wanted = section.model_dump(exclude={"name", "sources", "data_dir", "config", "split", "revision", "template"})
    rows = [wanted, section.weights, identify_sources(section)]
    text = json.dumps([rows, _digest_tokenizer(tokenizer), options, _digest_code()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_entry(entry: Path) -> tuple[dict[str, datasets.Dataset], Any] | None:
    """Return the tables of an entry, and what was written with them; None if it is absent or damaged."""
    try:
        content = read_json(entry / CONTENT)
        tables = {path.name: datasets.load_from_disk(str(path)) for path in entry.iterdir() if path.is_dir()}
        os.utime(entry)
    except (OSError, ValueError, pyarrow.ArrowException):
        return None
    return tables, content


def write_entry(entry: Path, tables: Mapping[str, datasets.Dataset], content: Any) -> None:
    """Write an entry, and delete those that nobody has read for a month."""
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=entry.parent))
    try:
        for name, table in tables.items():
            table.save_to_disk(str(unfinished / name))
        write_json(unfinished / CONTENT, content)
        shutil.rmtree(entry, ignore_errors=True)  # a damaged one
        unfinished.rename(entry)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    oldest = time.time() - KEPT_DAYS * 86400
    for path in entry.parent.iterdir():
        if path.is_dir() and path.stat().st_mtime < oldest:
            shutil.rmtree(path, ignore_errors=True)  # a process that reads it has it still: its files are mapped


@contextmanager
def holding(entry: Path) -> Iterator[None]:
    """Hold an entry for this process, to write it; others wait: the kernel releases it, however the process ends."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    with entry.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _digest_tokenizer(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return hash_folder(Path(folder))


@cache
def _digest_code() -> list[str]:
    """So that no version reads what another one would have written differently."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return [*map(hash_file, files), *map(version, LIBRARIES)]
