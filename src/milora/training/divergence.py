"""A run that diverged is not a trained run: it stops at the first number that is not finite."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from milora.method.errors import MiloraError
from milora.run.records import Divergence


class DivergedError(MiloraError):
    """Training stops here; `found` is what a run directory keeps of it."""

    def __init__(self, what: str, step: int, learning_rate: float) -> None:
        super().__init__(
            f"training diverged: {what} is not finite at step {step}, at learning rate {learning_rate:g}",
            "lower training.learning_rate or raise training.warmup_steps",
        )
        self.found = Divergence(what, step, learning_rate)


class DivergenceGuard(TrainerCallback):
    """Stops training before an optimizer step whose gradient is not finite, and at a logged loss that is not.

    Under DeepSpeed gradients are not visible here, and under fp16 the loss scaler skips steps that overflow: there the
    loss alone is watched.
    """

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        **_: Any,
    ) -> None:
        assert model is not None and lr_scheduler is not None
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        if not args.fp16 and gradients and not _are_finite(gradients):
            raise DivergedError("the gradient", state.global_step + 1, float(lr_scheduler.get_last_lr()[0]))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if logs and not math.isfinite(logs.get("loss", 0.0)):
            raise DivergedError("the training loss", state.global_step, logs.get("learning_rate", args.learning_rate))


def check_trained(state: dict[str, Tensor], held_out_loss: float | None, steps: int, learning_rate: float) -> None:
    """Raise unless the trained weights and the held-out loss are finite; the last step is seen by no later one."""
    if not _are_finite(tensor for tensor in state.values() if tensor.is_floating_point()):
        raise DivergedError("a trained weight", steps, learning_rate)
    if held_out_loss is not None and not math.isfinite(held_out_loss):
        raise DivergedError("the held-out loss", steps, learning_rate)


def _are_finite(tensors: Iterable[Tensor]) -> bool:
    """A sum of squares is finite if every number is; one that only overflows is checked number by number."""
    local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    norms = torch.stack([torch.linalg.vector_norm(tensor, dtype=torch.float32).cpu() for tensor in local])
    return bool(norms.isfinite().all()) or all(bool(tensor.isfinite().all()) for tensor in local)
