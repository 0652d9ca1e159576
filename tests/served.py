"""A real server in the tests: llama.cpp's own, in this process, with the embedded model."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from milora.models.embedded import EMBEDDED, locate_gguf

CONTEXT = 2048  # tokens of each of the slots
SLOTS = 2


@dataclass(frozen=True)
class LlamaServer:
    """Where it listens (…/v1), and the name of its model: SmolLM2-135M-Instruct in 4 bits."""

    url: str
    model: str = EMBEDDED


@contextmanager
def serving() -> Iterator[LlamaServer]:
    """Serve the embedded model on a free port of the loopback interface."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(locate_gguf())
    params.model_alias = {EMBEDDED}
    params.n_ctx, params.n_parallel = CONTEXT * SLOTS, SLOTS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.port = params.verbosity = 0
    params.warmup = False
    running = xllamacpp.Server(params)
    yield LlamaServer(f"{running.listening_address}/v1")
    del running  # which stops it
