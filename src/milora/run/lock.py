"""A folder that one process, or one launch, works on at a time."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from milora.method.errors import MiloraError
from milora.run.launch import fail_together, is_main_process


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a folder for this process; the kernel releases it when the process ends, however it ends.

    Of the processes of one launch, the main one holds it for all; the others continue once it does.

    Raises:
        MiloraError: another process holds it, and this one does not `wait`.
    """
    import fcntl  # not on Windows, where the command line says at once that it does not run

    with ExitStack() as stack:
        with fail_together():
            if is_main_process():
                folder.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context((folder / ".lock").open("w"))
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                except BlockingIOError as error:
                    raise MiloraError(f"another process works on {folder}", "wait for it, or stop it") from error
        yield
