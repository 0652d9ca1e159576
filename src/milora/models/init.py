"""`milora init`: a model on disk → its untrained adapter."""

from pathlib import Path

from milora.method.disk.start import initialize_checkpoint
from milora.method.errors import MiloraError
from milora.method.factors import Choice
from milora.models.base import load_skeleton
from milora.models.located import locate_checkpoint
from milora.models.methods import make_config, put_adapter
from milora.models.targets import check_targets
from milora.run.launch import count_processes
from milora.run.lock import locked
from milora.run.sections import AdapterSection, ModelSection


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
    peft_model = put_adapter(skeleton, make_config(section), revision=model.revision)
    choice = Choice(section.components, section.weighting, seed)
    with locked(output):
        return initialize_checkpoint(
            peft_model,
            folder,
            output,
            choice,
            form=section.form,
            unsupported=section.unsupported,
            jobs=jobs,
            cache=cache,
        )
