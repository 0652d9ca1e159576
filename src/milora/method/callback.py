"""The portable LoRA beside each checkpoint of a transformers Trainer."""

import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from milora.method.export import save_milora_as_lora
from milora.method.layers import milora_layers


class MiloraCallback(TrainerCallback):
    """Writes the portable LoRA to `lora-<step>` beside each checkpoint of a transformers Trainer.

    It is not written inside the checkpoint, because a Trainer that resumes would load the folder as another adapter.
    If the Trainer deletes checkpoints (`save_total_limit`), the LoRA of each of them is deleted, too.
    """

    def __init__(self, adapter_name: str = "default") -> None:
        self.adapter_name = adapter_name

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        """Check that the adapter can be exported.

        Raises:
            MiloraError: it was not initialized by milora, or is sharded.
        """
        milora_layers(parts["model"], self.adapter_name)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        if not state.is_world_process_zero:
            return
        output = Path(str(args.output_dir))
        save_milora_as_lora(output / f"lora-{state.global_step}", parts["model"], adapter_name=self.adapter_name)
        if args.save_total_limit is None:
            return
        for written in output.glob("lora-*"):
            step = written.name.removeprefix("lora-")
            if step.isdigit() and not (output / f"checkpoint-{step}").exists():
                shutil.rmtree(written)
