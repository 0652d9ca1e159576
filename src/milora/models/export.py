"""A trained run → the forms that others load."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from peft.utils import CONFIG_NAME
from transformers import AutoConfig

from milora.method.disk.conversion import convert_adapter
from milora.method.errors import MiloraError
from milora.method.export import save_milora_as_lora, save_residual_pair
from milora.method.files import read_json
from milora.method.loading import load_milora
from milora.method.options import Export
from milora.models.base import attach_adapter, load_model, load_tokenizer
from milora.models.card import describe_lora
from milora.models.gguf import find_architecture, write_gguf
from milora.models.located import load_config
from milora.models.vision import copy_processor, is_pictured, takes_pictures
from milora.run.directory import RunDirectory, locate_export
from milora.run.recipe import Recipe
from milora.run.sections import ModelSection


def check_vacant(folder: Path) -> Path:
    """Return the folder, unless it contains something: an export never writes over a run, a start, or a model.

    Raises:
        MiloraError: it does.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise MiloraError(f"{folder} exists and is not an empty folder", "name another one with -o")
    return folder


def export_run(
    run: RunDirectory, trained: Path, form: Export, output: Path | None = None, rank: int | None = None
) -> Path:
    """Write what a run trained, its result or a checkpoint's, in a form that others load; return the file or folder.

    That is an ordinary LoRA for the untouched base, the same as an adapter of llama.cpp, a merged model, or the paper's
    residual pair. The adapter of a method without initial factors is one that PEFT loads as it is, and is copied.
    `output` is by default a folder in the run.

    Raises:
        MiloraError: the form does not fit the method or the model.
    """
    recipe = run.recipe
    method, is_full = recipe.adapter.method, recipe.adapter.method == "full"
    is_lora = form in ("lora", "gguf")
    if rank is not None and not (is_lora and recipe.adapter.has_initial_factors):
        raise MiloraError(f"--rank {rank} recompresses a LoRA, not --as {form} of {method}", "leave --rank out")
    if not is_lora and recipe.model.quantization:
        raise MiloraError(
            f"--as {form}: a weight in {recipe.model.quantization} would round the update away",
            "use --as lora; what merges it into the full-precision base gets another model than was trained",
        )
    if is_lora and is_full or form == "residual" and not recipe.adapter.has_initial_factors:
        raise MiloraError(f"method {method} leaves nothing to write as {form}: {trained}", "use --as merged")
    output = output or locate_export(run.path, form, "" if trained == run.trained else trained.name)
    if form == "gguf":
        config = load_config(recipe.model)
        find_architecture(config)  # before the model is loaded
        with TemporaryDirectory() as folder:
            _write_lora(recipe, trained, Path(folder), rank)
            return write_gguf(output, Path(folder), config)
    if form == "lora":
        _write_lora(recipe, trained, output, rank)
        describe_lora(output, recipe.model, method, recipe.name, pictures=takes_pictures(recipe.model))
        return output
    if is_full:
        return _copy(trained, output)
    model = load_model(recipe.model)
    if form == "residual":
        save_residual_pair(output, load_milora(model, trained, form="residual"))
    else:
        attach_adapter(model, trained, recipe.adapter.form).merge_and_unload().save_pretrained(output)
    load_tokenizer(recipe.model).save_pretrained(output)
    if takes_pictures(recipe.model):
        copy_processor(recipe.model, output)
    return output


def _write_lora(recipe: Recipe, trained: Path, output: Path, rank: int | None) -> None:
    if recipe.adapter.has_initial_factors:
        save_milora_as_lora(output, attach_adapter(load_model(recipe.model), trained, recipe.adapter.form), rank=rank)
    else:
        _copy(trained, output)


def _copy(trained: Path, output: Path) -> Path:
    """Without what a checkpoint also has: the trainer's state."""
    state = {"optimizer", "scheduler", "rng_state", "trainer_state", "training_args", "scaler", "complete"}
    output.mkdir(parents=True, exist_ok=True)
    for file in trained.iterdir():
        if file.is_file() and file.name.partition(".")[0] not in state:
            shutil.copy2(file, output)
    return output


def export_adapter(
    adapter: Path, initial: Path, form: Export, output: Path | None = None, rank: int | None = None
) -> Path:
    """Write an adapter trained on a residual model from `milora init` for the original base, as LoRA or for llama.cpp.

    Raises:
        MiloraError: see `convert_adapter`; or another form is asked for.
    """
    if form not in ("lora", "gguf"):
        raise MiloraError(f"an adapter on a residual model is not written --as {form}", "use --as lora or --as gguf")
    output = output or locate_export(adapter, form)
    if form == "gguf":
        with TemporaryDirectory() as folder:
            convert_adapter(Path(folder), adapter, initial, rank=rank)
            return write_gguf(output, Path(folder), AutoConfig.from_pretrained(initial))
    convert_adapter(output, adapter, initial, rank=rank)
    base = str(read_json(output / CONFIG_NAME)["base_model_name_or_path"])
    pictures = is_pictured(AutoConfig.from_pretrained(initial))
    describe_lora(output, ModelSection(name=base), "milora", adapter.resolve().name, pictures=pictures)
    return output
