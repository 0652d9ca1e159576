"""What a tensor is made of: for digests and for files."""

import torch
from torch import Tensor


def view_bytes(tensor: Tensor) -> memoryview:
    """Return the tensor's bytes, without a copy where it is contiguous on the CPU already."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
