"""TRL's trainer, made the same for one process and for many."""

from typing import Any

import torch
from peft import AdaLoraConfig, PeftModel
from peft.optimizers import create_loraplus_optimizer
from peft.utils.integrations import gather_params_ctx
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl import SFTTrainer

from milora.data.tokens import IGNORED


class RecipeTrainer(SFTTrainer):
    """Under every launcher, the loss, its trajectory and what is saved are those of one process.

    `loraplus_ratio` is the learning rate of LoRA+'s B over A's; None means the trainer's own AdamW.
    """

    def __init__(self, *, loraplus_ratio: float | None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.loraplus_ratio = loraplus_ratio
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                # On a quantized base TRL has made it bfloat16, in which most of AdamW's steps on factors that do not
                # start at zero round away.
                parameter.data = parameter.data.float()

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.loraplus_ratio is not None and self.optimizer is None:  # type: ignore[has-type]
            self.optimizer = create_loraplus_optimizer(
                self.model,
                torch.optim.AdamW,
                lr=self.args.learning_rate,
                loraplus_lr_ratio=self.loraplus_ratio,
                loraplus_weight_decay=self.args.weight_decay,
            )
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        return optimizer

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Tensor]:
        """As TRL's, without the loss of rows that an epoch contains twice.

        If rows are left over, accelerate fills the last batch of all processes with the epoch's first ones.
        """
        batches, tokens = super().get_batch_samples(epoch_iterator, num_batches, device)
        rows = self.args.per_device_train_batch_size
        left_over = len(self.train_dataset) % (rows * self.args.world_size)
        if self.args.world_size == 1 or not left_over or not self.accelerator.gradient_state.end_of_dataloader:
            return batches, tokens
        batches[-1]["labels"][max(0, left_over - self.args.process_index * rows) :] = IGNORED
        return batches, self._get_num_items_in_batch(batches, device)

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """Cross-entropy alone: AdaLoRA adds a penalty to whatever loss it returns, in evaluation too."""
        config = self.model.active_peft_config if isinstance(self.model, PeftModel) else None
        if not isinstance(config, AdaLoraConfig):
            return super().evaluate(*arguments, **options)  # type: ignore[no-any-return]
        penalty, config.orth_reg_weight = config.orth_reg_weight, 0.0
        metrics: dict[str, float] = super().evaluate(*arguments, **options)
        config.orth_reg_weight = penalty
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the adapter unsharded, with its initial factors, which ZeRO-3 would leave out as frozen."""
        if isinstance(self.model, PeftModel):
            self._save(output_dir, state_dict=self.gather_state())
        else:
            super().save_model(output_dir, _internal_call)

    def gather_state(self) -> dict[str, Tensor]:
        """Return an adapter's tensors, or those of a fully tuned model, unsharded; every process must call it."""
        if not isinstance(self.model, PeftModel):
            return self.accelerator.get_state_dict(self.model_wrapped)  # type: ignore[no-any-return]
        parameters = {name: tensor for name, tensor in self.model.named_parameters() if "lora_" in name}
        with gather_params_ctx(list(parameters.values()), modifier_rank=None):
            return {name: _whole(tensor).detach().to("cpu", copy=True) for name, tensor in parameters.items()}

    def close(self) -> None:
        """Let models be loaded whole from here on; transformers would shard them as the trained one."""
        unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
