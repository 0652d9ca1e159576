"""A recipe → the trainer's arguments; batches and steps are those of all processes together."""

import difflib
import importlib.util
import math
import re

import torch
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.training_args import OptimizerNames
from trl import SFTConfig  # type: ignore[attr-defined]  # TRL declares its public names lazily

from milora.method.errors import MiloraError
from milora.run.directory import RunDirectory
from milora.run.launch import count_processes
from milora.run.recipe import Recipe


def make_arguments(run: RunDirectory, *, resumed: bool, evaluated: bool) -> SFTConfig:
    """Return the trainer's arguments; `evaluated` looks at the held-out loss, at the start unless `resumed`.

    Raises:
        MiloraError: the batch cannot be divided evenly among the processes.
    """
    recipe, settings = run.recipe, run.recipe.training
    best = settings.keep == "best"
    # What is trained is stored in float32 and computed in the model's dtype, by every method alike: autocast rounds it
    # when it is used. (DeepSpeed uses one dtype for everything, and keeps float32 copies of what it trains.)
    return SFTConfig(
        output_dir=str(run.checkpoints),
        seed=recipe.seed,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        per_device_train_batch_size=settings.batch_size // count_processes(),  # the trainer divides it into passes
        per_device_eval_batch_size=micro_batch_size(recipe),
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        max_length=None,  # tokenize_rows has cut already, and counted
        save_steps=settings.save_steps,
        save_total_limit=2,
        eval_on_start=evaluated and not resumed,
        eval_strategy="steps" if best else "no",
        eval_steps=settings.save_steps,
        load_best_model_at_end=best,
        metric_for_best_model="eval_loss" if best else None,
        restore_callback_states_from_checkpoint=settings.early_stopping_patience is not None,
        logging_steps=settings.log_steps,
        logging_nan_inf_filter=False,
        report_to=settings.report_to,
        include_num_input_tokens_seen="non_padding",
        optim=settings.optimizer,
        activation_checkpointing=settings.activation_checkpointing,
        activation_offloading=settings.activation_offloading,
        disable_tqdm=True,
        remove_unused_columns=False,  # the paths of pictures are not a model's
        bf16=recipe.model.dtype == "bfloat16",
        fp16=recipe.model.dtype == "float16",  # with loss scaling, without which small gradients vanish
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,  # A₀ and B₀, equal on all processes, would be sent before every forward pass
        use_cpu=not torch.accelerator.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def check_reporting(name: str) -> None:
    """Raise unless the library that `training.report_to` names is installed.

    Raises:
        MiloraError: transformers does not know it, or it is not installed.
    """
    known = sorted(INTEGRATION_TO_CALLBACK)
    if name not in (*known, "all", "none"):
        raise MiloraError(f"training.report_to={name} is not a tracker", f"choose none, or {', '.join(known)}")
    installed = get_available_reporting_integrations()  # type: ignore[no-untyped-call]
    if name in known and name not in installed:
        raise MiloraError(f"training.report_to={name}: the library is not installed", "install it, or set none")


def check_optimizer(name: str) -> None:
    """Raise unless transformers has the optimizer, and the library that it comes from is installed.

    Raises:
        MiloraError: it does not, or the optimizer needs parameters that a recipe does not name.
    """
    known = [entry.value for entry in OptimizerNames if not entry.value.startswith(UNSUPPORTED)]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise MiloraError(
            f"training.optimizer={name} is not an optimizer that a recipe can have",
            f"did you mean {near[0]}?" if near else f"choose one of {', '.join(known)}",
        )
    if FROM_BITSANDBYTES.search(name) and importlib.util.find_spec("bitsandbytes") is None:
        raise MiloraError(f"training.optimizer={name} needs bitsandbytes", "pip install 'milora[quantized]'")


# They need target modules, layers, devices, or libraries that a recipe does not know.
UNSUPPORTED = (
    *("galore", "apollo", "lomo", "adalomo", "grokadamw", "schedule_free", "stable_adamw", "adamw_anyprecision"),
    *("adamw_torch_xla", "adamw_torch_npu", "adamw_torch_4bit", "adamw_torch_8bit"),
)
FROM_BITSANDBYTES = re.compile(r"^(adamw_8bit|ademamix|adamw_bnb|lion_|paged_|rmsprop_bnb)")


def count_steps(recipe: Recipe, rows: int) -> int:
    settings = recipe.training
    return settings.max_steps or math.ceil(math.ceil(rows / settings.batch_size) * settings.epochs)


def micro_batch_size(recipe: Recipe) -> int:
    """Return the rows of a forward pass on each process: at most the recipe's, and at most its share of the batch.

    Raises:
        MiloraError: the batch cannot be divided evenly.
    """
    settings, processes = recipe.training, count_processes()
    share, rest = divmod(settings.batch_size, processes)
    if rest:
        raise MiloraError(
            f"training.batch_size {settings.batch_size} is that of all {processes} processes together, and is not a "
            f"multiple of {processes}",
            f"set training.batch_size={settings.batch_size + processes - rest}, or launch a number that divides it",
        )
    micro_batch = min(settings.micro_batch_size or share, share)
    if share % micro_batch:
        divisor = max(size for size in range(1, micro_batch) if share % size == 0)
        raise MiloraError(
            f"each of {processes} processes has {share} of training.batch_size {settings.batch_size} rows, and "
            f"training.micro_batch_size {micro_batch} does not divide that",
            f"set training.micro_batch_size={divisor}",
        )
    return micro_batch
