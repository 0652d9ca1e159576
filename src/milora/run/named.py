"""What a name on the command line stands for: a recipe, a run directory, or a checkpoint of a run."""

from collections.abc import Sequence
from pathlib import Path

from milora.method.errors import MiloraError
from milora.run.directory import NOTHING, Permissions, RunDirectory, is_run, is_whole, open_run, run_of_checkpoint
from milora.run.recipe import Recipe, load_recipe


def read_job(name: str, overrides: Sequence[str], permissions: Permissions = NOTHING) -> Recipe | RunDirectory:
    """Return the run directory that `name` is, or its recipe; see `open_run` and `load_recipe`.

    Raises:
        MiloraError: overrides of a run that exists.
    """
    if not is_run(Path(name)):
        return load_recipe(name, overrides)
    if overrides:
        raise MiloraError(f"{name} is a run, whose recipe is fixed", "leave the overrides out, or name its recipe")
    return open_run(Path(name).resolve(), permissions)


def open_trained(path: Path, permissions: Permissions = NOTHING) -> tuple[RunDirectory, Path]:
    """Return a run, and what it trained: its result, or that of the checkpoint that `path` is.

    Raises:
        MiloraError: see `open_run`; or the run is not trained, or the checkpoint is not whole.
    """
    run = run_of_checkpoint(path, permissions)
    if run is not None:
        if not is_whole(path):
            raise MiloraError(f"{path} is not a whole checkpoint", "use an earlier one, or resume the run")
        return run, path
    run = open_run(path, permissions)
    if not run.is_trained:
        raise MiloraError(
            f"{run.path} is not trained yet", "run `milora train` with it first, or name one of its checkpoints"
        )
    return run, run.trained
