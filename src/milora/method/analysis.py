"""What the weights look like: spectra."""

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


def measure_spectra(model: nn.Module, count: int = 4) -> dict[str, list[float]]:
    """Return all singular values, descending, of `count` linear weights spread evenly over the model's depth."""
    weights = {name: part.weight for name, part in model.named_modules() if isinstance(part, (nn.Linear, Conv1D))}
    names = list(weights)
    step = max(1, len(names) // count)
    chosen = names[step // 2 :: step][:count]
    return {name: torch.linalg.svdvals(weights[name].detach().float()).tolist() for name in chosen}
