"""A trained run → the forms that others load."""

import shutil
from pathlib import Path
from typing import Literal

from milora.method.checkpoint import load_milora
from milora.method.conversion import convert_adapter
from milora.method.errors import MiloraError
from milora.method.export import save_milora_as_lora, save_residual_pair
from milora.run.directory import RunDirectory
from milora.run.models import attach_adapter, load_model, load_tokenizer

Form = Literal["lora", "merged", "residual"]


def export_run(run: RunDirectory, form: Form, output: Path, rank: int | None = None) -> Path:
    """Write a trained run as an ordinary LoRA for the untouched base, a merged model, or the paper's residual pair.

    Raises:
        MiloraError: the run is not trained, or the form does not fit the method.
    """
    if not run.is_trained:
        raise MiloraError(f"{run.path} is not trained yet", "run `milora train` with its recipe first")
    if rank is not None and form != "lora":
        raise MiloraError(f"--rank {rank} recompresses a LoRA, not --as {form}", "leave --rank out")
    if run.recipe.adapter.method == "full" and form == "merged":
        shutil.copytree(run.model, output, dirs_exist_ok=True)
        return output
    model = load_model(run.recipe.model)
    if form == "merged":
        attach_adapter(model, run.adapter, run.recipe.adapter.base).merge_and_unload().save_pretrained(output)
        load_tokenizer(run.recipe.model).save_pretrained(output)
    elif not run.recipe.adapter.has_initial_factors:
        raise MiloraError(
            f"method {run.recipe.adapter.method} leaves nothing to convert: {run.trained}", "use --as merged"
        )
    elif form == "residual":
        save_residual_pair(output, load_milora(model, run.adapter, base="residual"))
        load_tokenizer(run.recipe.model).save_pretrained(output)
    else:
        save_milora_as_lora(output, attach_adapter(model, run.adapter, run.recipe.adapter.base), rank=rank)
    return output


def export_adapter(adapter: Path, initial: Path, form: Form, output: Path, rank: int | None = None) -> Path:
    """Write an adapter trained on a residual model from `milora init` as an ordinary LoRA for the original base.

    Raises:
        MiloraError: see `convert_adapter`; or another form is asked for.
    """
    if form != "lora":
        raise MiloraError(f"an adapter on a residual model is not written --as {form}", "leave --as out")
    convert_adapter(output, adapter, initial, rank=rank)
    return output
