"""A trained run → the forms that others load."""

import shutil
from pathlib import Path

from peft.utils import CONFIG_NAME

from milora.method.disk.conversion import convert_adapter
from milora.method.errors import MiloraError
from milora.method.export import save_milora_as_lora, save_residual_pair
from milora.method.files import read_json
from milora.method.loading import load_milora
from milora.method.options import Export
from milora.models.base import attach_adapter, load_model, load_tokenizer
from milora.models.card import describe_lora
from milora.run.directory import RunDirectory
from milora.run.recipe import ModelSection


def check_vacant(folder: Path) -> Path:
    """Return the folder, unless it contains something: an export never writes over a run, a start, or a model.

    Raises:
        MiloraError: it does.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise MiloraError(f"{folder} exists and is not an empty folder", "name another one with -o")
    return folder


def export_run(run: RunDirectory, form: Export, output: Path, rank: int | None = None) -> Path:
    """Write a trained run as an ordinary LoRA for the untouched base, a merged model, or the paper's residual pair.

    The adapter of a method without initial factors is one that PEFT loads as it is, and is copied.

    Raises:
        MiloraError: the run is not trained, or the form does not fit the method.
    """
    recipe = run.recipe
    method, is_full = recipe.adapter.method, recipe.adapter.method == "full"
    if not run.is_trained:
        raise MiloraError(f"{run.path} is not trained yet", "run `milora train` with its recipe first")
    if rank is not None and (form != "lora" or not recipe.adapter.has_initial_factors):
        raise MiloraError(f"--rank {rank} recompresses a LoRA, not --as {form} of {method}", "leave --rank out")
    if form != "lora" and recipe.model.quantization:
        raise MiloraError(
            f"--as {form}: a weight in {recipe.model.quantization} would round the update away",
            "use --as lora; what merges it into the full-precision base gets another model than was trained",
        )
    if form == "lora" and is_full or form == "residual" and not recipe.adapter.has_initial_factors:
        raise MiloraError(f"method {method} leaves nothing to write as {form}: {run.trained}", "use --as merged")
    if form == "lora":
        if recipe.adapter.has_initial_factors:
            tuned = attach_adapter(load_model(recipe.model), run.adapter, recipe.adapter.form)
            save_milora_as_lora(output, tuned, rank=rank)
        else:
            shutil.copytree(run.adapter, output, dirs_exist_ok=True)
        describe_lora(output, recipe.model, method, recipe.name)
        return output
    if is_full:
        shutil.copytree(run.model, output, dirs_exist_ok=True)
        return output
    model = load_model(recipe.model)
    if form == "residual":
        save_residual_pair(output, load_milora(model, run.adapter, form="residual"))
    else:
        attach_adapter(model, run.adapter, recipe.adapter.form).merge_and_unload().save_pretrained(output)
    load_tokenizer(recipe.model).save_pretrained(output)
    return output


def export_adapter(adapter: Path, initial: Path, form: Export, output: Path, rank: int | None = None) -> Path:
    """Write an adapter trained on a residual model from `milora init` as an ordinary LoRA for the original base.

    Raises:
        MiloraError: see `convert_adapter`; or another form is asked for.
    """
    if form != "lora":
        raise MiloraError(f"an adapter on a residual model is not written --as {form}", "leave --as out")
    convert_adapter(output, adapter, initial, rank=rank)
    base = str(read_json(output / CONFIG_NAME)["base_model_name_or_path"])
    describe_lora(output, ModelSection(name=base), "milora", adapter.resolve().name)
    return output
