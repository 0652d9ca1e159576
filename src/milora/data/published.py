"""Files of a public benchmark beside its rows, such as a judge's prompt, in a folder or where they are published."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from milora.data.files import read_rows
from milora.method.errors import MiloraError


@dataclass(frozen=True, slots=True)
class Published:
    """One file: its possible names under a data_dir, the first that exists counts, and its address.

    What is `optional` may be absent from a data_dir.
    """

    files: tuple[str, ...]
    address: str
    optional: bool = False


def candidates(file: str, data_dir: str) -> list[Path]:
    """Return where a file may be under a data_dir: in the folders of its name, or without them."""
    return [Path(data_dir) / file, Path(data_dir) / Path(file).name]


def look_for(published: Published, data_dir: str) -> Path | None:
    """Return the file under `data_dir`, None if it is absent."""
    paths = (path for name in published.files for path in candidates(name, data_dir))
    return next((path for path in paths if path.is_file()), None)


def find_published(published: Published, data_dir: str) -> Path | None:
    """Return the file under `data_dir`; None if it is optional and absent.

    Raises:
        MiloraError: it is absent, and not optional.
    """
    found = look_for(published, data_dir)
    if found is None and not published.optional:
        raise MiloraError(
            f"{Path(data_dir) / published.files[0]} does not exist",
            f"get it from {published.address}, or leave data_dir out to read it there",
        )
    return found


def read_text(published: Published, data_dir: str | None) -> str:
    """Return a file's text, byte for byte.

    Raises:
        MiloraError: it is absent, or cannot be read.
    """
    if data_dir is None:
        return str(_load("text", published.address, sample_by="document", keep_linebreaks=True)[0]["text"])
    file = find_published(published, data_dir)
    assert file is not None
    try:
        return file.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MiloraError(f"{file} cannot be read: {error}", f"get it from {published.address}") from error


def read_table(published: Published, data_dir: str | None) -> list[Mapping[str, Any]] | None:
    """Return a table's rows; None if the file is optional and absent from `data_dir`.

    Raises:
        MiloraError: it is absent, or cannot be read.
    """
    if data_dir is None:
        kind = "csv" if published.address.endswith(".csv") else "json"
        return list(_load(kind, published.address))
    file = find_published(published, data_dir)
    return None if file is None else list(read_rows(file))


def _load(kind: str, address: str, **options: Any) -> datasets.Dataset:
    try:
        return datasets.load_dataset(kind, data_files=address, split="train", **options)
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        raise MiloraError(
            f"{address} cannot be read: {' '.join(str(error).split())[:300]}",
            "name a folder that contains the benchmark's files in evaluation.data_dir",
        ) from error
