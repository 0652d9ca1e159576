"""How fast training is: real tokens per second, and the share of the device's peak that they make use of."""

import resource
import sys
import time
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from milora.run.launch import count_processes
from milora.training.estimate import count_operations
from milora.training.prepare import Preparation

# Operations per second on dense matrices in 16 bits, from NVIDIA's data sheets, by a part of the device's name; the
# first that fits counts. A device that is not here has no share: nothing is guessed.
PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
}


class Speed(TrainerCallback):
    """Counts the time of optimizer steps alone: evaluations and checkpoints do not count.

    The model's FLOP/s utilization (MFU) is tokens · (4·frozen + 6·trained weights) / (seconds · peak of all devices).
    """

    def __init__(self, prepared: Preparation, dtype: str) -> None:
        self.operations = _count_operations(prepared)
        # In float32 the peak is another one, which depends on settings.
        self.peak = (
            find_peak(torch.cuda.get_device_name()) if torch.cuda.is_available() and dtype != "float32" else None
        )
        self.seconds, self.tokens, self.seen = 0.0, 0.0, 0.0

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.began = time.perf_counter()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.seen = float(state.num_input_tokens_seen)  # before it was resumed

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.seconds += time.perf_counter() - self.began
        self.tokens = float(state.num_input_tokens_seen) - self.seen

    @property
    def tokens_per_second(self) -> float | None:
        """Of all processes together; None before the first step."""
        return self.tokens / self.seconds if self.seconds else None

    @property
    def mfu(self) -> float | None:
        """None where the peak is not known."""
        rate = self.tokens_per_second
        return rate * self.operations / (self.peak * count_processes()) if rate and self.peak else None

    def measure(self) -> dict[str, float]:
        """Return what is logged beside the loss; gigabytes are those of this process."""
        rate, processes = self.tokens_per_second, count_processes()
        if rate is None:
            return {}
        found = {"tokens_per_second": rate, "peak_memory_gb": peak_memory() / 1e9}
        if processes > 1:
            found["tokens_per_second_of_a_process"] = rate / processes
        return found if self.mfu is None else {**found, "mfu": self.mfu}


def find_peak(device: str) -> float | None:
    """Return the peak of a device by its name."""
    return next((peak for name, peak in PEAKS.items() if name in device), None)


def peak_memory() -> int:
    """Return the bytes of this process at its peak: allocated on the GPU, or all of them if there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _count_operations(prepared: Preparation) -> float:
    model = prepared.model
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    looked_up = (
        0 if head is None or head.weight is embeddings.weight else sum(map(Tensor.numel, embeddings.parameters()))
    )
    return count_operations(prepared.total - prepared.trainable - looked_up, prepared.trainable)
