"""A cache of factors on disk, addressed by the weight and the options that they were made from."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from milora.method.decomposition import Factors
from milora.method.errors import MiloraError
from milora.method.files import replacing, view_bytes
from milora.method.solver.certificate import Certificate

VERSION = "1"  # to be changed whenever the same weight and options give other factors


class FactorCache:
    """A folder of factors, each entry addressed by its weight's bytes and options, and verified by a checksum.

    An entry that is truncated, altered or unreadable counts as absent, and is written again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, weight: Tensor, options: dict[str, Any]) -> Path:
        """Return the path of the entry for this weight and these options, whether it exists or not."""
        digest = hashlib.sha256(json.dumps([VERSION, str(weight.dtype), list(weight.shape), options]).encode())
        digest.update(view_bytes(weight))
        return self.folder / f"{digest.hexdigest()}.safetensors"

    def read(self, path: Path) -> Factors | None:
        """Return the factors at `path`, or None if the entry is absent or invalid."""
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
                metadata = file.metadata()
        except (FileNotFoundError, SafetensorError):
            return None
        if metadata.get("sha256") != _checksum(tensors, metadata["certificate"]):
            return None
        certificate = Certificate(**json.loads(metadata["certificate"]))
        return Factors(tensors["B"], tensors["A"], tensors["S"], tensors["largest"].item(), certificate)

    def write(self, path: Path, factors: Factors) -> None:
        """Write an entry atomically.

        Raises:
            MiloraError: the folder cannot be written to.
        """
        assert factors.certificate is not None
        largest = torch.tensor(factors.largest, dtype=torch.float64)
        tensors = {"B": factors.B, "A": factors.A, "S": factors.singular_values, "largest": largest}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        certificate = json.dumps(asdict(factors.certificate), allow_nan=False)
        metadata = {"certificate": certificate, "sha256": _checksum(tensors, certificate)}
        try:
            with replacing(path) as unfinished:
                save_file(tensors, unfinished, metadata)
        except SafetensorError as error:
            raise MiloraError(f"{self.folder} cannot be written to: {error}", "free disk space") from error


def _checksum(tensors: dict[str, Tensor], certificate: str) -> str:
    digest = hashlib.sha256(certificate.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(view_bytes(tensors[name]))
    return digest.hexdigest()
