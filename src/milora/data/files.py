"""Local files → rows with the cells that the files contain: nothing is converted, guessed, or skipped."""

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from milora.method.errors import MiloraError

FORMATS = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
COMPRESSIONS = (".gz", ".zst")
ENDINGS = f"{', '.join(FORMATS)}, and each of them with {' or '.join(COMPRESSIONS)}"
FIX = "fix the file, or write it again"


def format_of(path: Path) -> str | None:
    """Return the ending that says how a file is read, in lower case; None if it is not one of `FORMATS`."""
    endings = [ending.lower() for ending in path.suffixes]
    if endings and endings[-1] in COMPRESSIONS:
        endings.pop()
    return endings[-1] if endings and endings[-1] in FORMATS else None


def find_files(path: Path) -> list[Path]:
    """Return the file, or the files of rows in the folder, sorted by name.

    Raises:
        MiloraError: it does not exist, has another ending, or is a folder without such files.
    """
    if path.is_dir():
        files = [file for file in path.iterdir() if file.is_file() and format_of(file) and file.name[0] != "."]
        if not files:
            raise MiloraError(f"data.name={path}: the folder contains no files of rows", f"they end in {ENDINGS}")
        return sorted(files)
    if not path.is_file():
        raise MiloraError(f"data.name={path}: the file does not exist", "check the path")
    if format_of(path) is None:
        raise MiloraError(f"data.name={path}: rows are not read from such a file", f"use one that ends in {ENDINGS}")
    return [path]


def read_rows(path: Path) -> Iterator[Any]:
    """Yield the rows of a file. Each should be a dictionary of columns, but a JSON file may contain anything.

    Raises:
        MiloraError: the file is empty, damaged, or not of the format that its ending says; the line is named.
    """
    content = _read_bytes(path)
    if not content.strip():
        raise MiloraError(f"{path} is empty", FIX)
    kind = format_of(path)
    if kind == ".parquet":
        yield from _read_parquet(path, content)
    elif kind in (".csv", ".tsv"):
        yield from _read_cells(path, _decode(path, content), "," if kind == ".csv" else "\t")
    else:
        yield from _read_json(path, _decode(path, content), kind == ".json")


def _read_bytes(path: Path) -> bytes:
    ending = path.suffix.lower()
    try:
        content = path.read_bytes()
        if ending == ".gz":
            return gzip.decompress(content)
        if ending == ".zst":
            with pyarrow.CompressedInputStream(pyarrow.BufferReader(content), "zstd") as stream:
                return bytes(stream.read())
    except (OSError, EOFError, zlib.error, pyarrow.ArrowException) as error:
        raise MiloraError(f"{path} cannot be read: {error}", "check the file; a download may be incomplete") from error
    return content


def _decode(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise MiloraError(f"{path}, line {line}: the text is not UTF-8", "save the file as UTF-8") from error


def _read_parquet(path: Path, content: bytes) -> Iterator[Any]:
    try:
        for batch in parquet.ParquetFile(pyarrow.BufferReader(content)).iter_batches():
            yield from batch.to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise MiloraError(f"{path} is not a whole Parquet file: {str(error).splitlines()[0]}", FIX) from error


def _read_cells(path: Path, text: str, delimiter: str) -> Iterator[dict[str, str]]:
    """Every cell is a string; "NA", "null" and "007" are what they are."""
    limit = csv.field_size_limit(sys.maxsize)  # a cell may well be longer than csv's 128 KiB; the limit is global
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        lines = [(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as error:
        raise MiloraError(f"{path}, line {reader.line_num}: {error}", "fix the quotes of that line") from error
    finally:
        csv.field_size_limit(limit)
    header = lines[0][1]
    if len(set(header)) < len(header):
        raise MiloraError(f"{path}, line 1: two columns have the same name: {', '.join(header)}", "rename one of them")
    for line, cells in lines[1:]:
        if len(cells) != len(header):
            raise MiloraError(
                f"{path}, line {line}: {len(cells)} cells, but the header names {len(header)} columns",
                "fix the line; a cell that contains the delimiter needs quotes",
            )
        yield dict(zip(header, cells, strict=True))


def _read_json(path: Path, text: str, is_document: bool) -> Iterator[Any]:
    """One document, or one row per line. A .json file may have lines, and a .jsonl file a list: both occur."""
    if is_document or text.lstrip().startswith("["):
        try:
            yield from _rows_of(path, json.loads(text))
            return
        except json.JSONDecodeError as error:
            if error.msg != "Extra data":  # a first value, and then more of them
                raise _bad_json(path, error.lineno, error) from error
        except (ValueError, RecursionError) as error:
            raise _bad_json(path, 1, error) from error
    for line, row in enumerate(text.split("\n"), 1):  # splitlines would also split at U+2028 inside a string
        if not row.strip():
            continue
        try:
            value = json.loads(row)
        except (ValueError, RecursionError) as error:
            raise _bad_json(path, line, error) from error
        yield value


def _rows_of(path: Path, document: Any) -> list[Any]:
    if isinstance(document, dict):
        document = document["data"] if isinstance(document.get("data"), list) else [document]
    if not isinstance(document, list):
        raise MiloraError(
            f"{path} contains {json.dumps(document)[:40]}, not rows",
            'write a list of objects, {"data": [...]}, or one object per line',
        )
    return document


def _bad_json(path: Path, line: int, error: ValueError | RecursionError) -> MiloraError:
    reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
    return MiloraError(f"{path}, line {line}: not valid JSON: {reason}", FIX)
