"""Why a model cannot be loaded, in one line, and the way out."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from milora.method.errors import MiloraError
from milora.models.embedded import EMBEDDED


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Whatever transformers raises about a model's files, with the model's name."""
    try:
        yield
    except (MiloraError, torch.OutOfMemoryError):
        raise
    except ImportError as error:
        raise unavailable(name, one_line(error), "install the package that the message names") from error
    except Exception as error:  # of any type: TypeError by a config, Exception itself by a tokenizer's file
        raise unavailable(name, one_line(error), _way_out(error)) from error


def unavailable(name: str, reason: str, hint: str) -> MiloraError:
    return MiloraError(f"model {name!r} cannot be loaded: {reason}", hint)


def one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


NAME_A_MODEL = f"name a hub model, a local folder with config.json, a .gguf file, or {EMBEDDED}"


def _way_out(error: BaseException | None) -> str:
    """What the user can do; transformers wraps what the hub's library raised."""
    while error is not None:
        if isinstance(error, GatedRepoError):
            return "ask for access on the model's page, and log in with `hf auth login`"
        if isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError)):
            return "check the name and the revision; a private model needs `hf auth login`"
        if isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError, TimeoutError)):
            return "check the network and HF_HUB_OFFLINE, or name a local folder"
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return "free some disk space; downloads go to HF_HOME"
        if isinstance(error, PermissionError):
            return "check the permissions"
        error = error.__cause__ or error.__context__
    return NAME_A_MODEL
