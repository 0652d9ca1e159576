"""`milora init`: a model on disk → its untrained adapter."""

from pathlib import Path

from peft import get_peft_model

from milora.method.disk.start import initialize_checkpoint
from milora.method.errors import MiloraError
from milora.method.factors import Choice
from milora.models.base import load_skeleton, locate_checkpoint
from milora.models.methods import check_targets, make_config
from milora.run.directory import locked
from milora.run.launch import count_processes
from milora.run.recipe import AdapterSection, ModelSection


def write_start(
    model: ModelSection, section: AdapterSection, output: Path, *, seed: int, jobs: int, cache: Path | None = None
) -> list[str]:
    """Write the section's untrained adapter of a model on disk; return warnings, as sentences.

    Raises:
        MiloraError: see `initialize_checkpoint`; or another process writes there.
    """
    if count_processes() > 1:
        raise MiloraError("milora init runs in one process", "start it without a launcher; --jobs uses the cores")
    check_targets(model, section)
    folder = locate_checkpoint(model)
    if output.resolve() == folder.resolve():
        raise MiloraError(f"{output} is the model itself", "write to another folder with -o")
    skeleton = load_skeleton(model)
    try:
        peft_model = get_peft_model(skeleton, make_config(section), revision=model.revision)
    except ValueError as error:
        raise MiloraError(str(error), "choose target modules that the model has") from error
    choice = Choice(section.components, section.weighting, seed)
    with locked(output):
        return initialize_checkpoint(peft_model, folder, output, choice, form=section.form, jobs=jobs, cache=cache)
