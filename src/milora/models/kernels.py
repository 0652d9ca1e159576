"""Liger's Triton kernels in place of a model's normalization, rotary embeddings, and the activation of its MLPs."""

import torch
from transformers import PreTrainedModel
from transformers.integrations.liger import apply_liger_kernel
from transformers.utils.import_utils import is_liger_kernel_available

from milora.method.errors import MiloraError

# The loss stays the trainer's own.
LAYERS_ONLY = {"cross_entropy": False, "fused_linear_cross_entropy": False}


def check_liger() -> None:
    """Raise unless Liger's kernels can run on this machine.

    Raises:
        MiloraError: no accelerator is available, or the package is not installed.
    """
    if not torch.accelerator.is_available():
        raise MiloraError("training.liger_kernels: Liger's kernels run on a GPU, and there is none", "leave it out")
    if not is_liger_kernel_available():
        raise MiloraError("training.liger_kernels needs the package liger-kernel", "pip install liger-kernel")


def use_liger(model: PreTrainedModel) -> None:
    """Compute the layers of a model with Liger's kernels, from now on; its losses change by rounding only.

    Rotary embeddings are replaced for all models of this architecture in the process. Source:
    https://github.com/linkedin/Liger-Kernel

    Raises:
        MiloraError: Liger has no kernels for the architecture.
    """
    apply_liger_kernel(model, LAYERS_ONLY)  # type: ignore[no-untyped-call]
    if not any(layer.forward.__module__.startswith("liger_kernel") for layer in model.modules()):
        raise MiloraError(
            f"training.liger_kernels: Liger has no kernels for the architecture {model.config.model_type}",
            "leave it out",
        )
