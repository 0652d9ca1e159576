"""TRL's trainer with the same results in one process and in many.

All private API of TRL and of transformers' trainer that milora uses is in this file; tests/test_seams.py asserts it.
"""

import warnings
from collections.abc import Iterator, Sized
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from peft import AdaLoraConfig, PeftModel
from peft.optimizers import create_loraplus_optimizer
from peft.utils.integrations import gather_params_ctx
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl import SFTTrainer  # type: ignore[attr-defined]  # TRL declares its public names lazily

from milora.data.tokens import IGNORED, PICTURES
from milora.method.analysis.watch import watch_update
from milora.method.options import Layout
from milora.run.directory import CHECKPOINT
from milora.training.attention import lay_out
from milora.training.checkpoints import writing
from milora.training.loss import can_chunk, loss_of_trained_tokens
from milora.training.packing import balance_rows, count_passes, divide_rows, row_lengths
from milora.training.pixels import ModalitySampler, forward_epochs, take_group
from milora.training.speed import Speed


class RecipeTrainer(SFTTrainer):
    """Under every launcher, the losses and the saved weights are those of one process.

    A batch of the arguments is that of a whole step. Its rows are divided among passes here, so that each may be full.

    Args:
        layout: How rows share a forward pass.
        projector: The name of the projector's module, and its learning rate; None unless it is trained.
        micro_batch_size: The most padded rows of a forward pass; packed, as many tokens as they would have had.
        loraplus_ratio: LoRA+'s learning rate of B divided by that of A; None selects the trainer's own AdamW.
        speed: What is logged beside the loss.
        arguments: Those of TRL's trainer.
    """

    def __init__(
        self,
        *,
        layout: Layout,
        micro_batch_size: int,
        loraplus_ratio: float | None,
        speed: Speed,
        projector: tuple[str, float] | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self.projector = projector
        self.layout, self.micro_batch_size = layout, micro_batch_size
        self.speed = speed
        self.add_callback(speed)
        self.loraplus_ratio = loraplus_ratio
        assert self.model is not None
        # A sharded head has its weight only while it runs.
        is_alone = self.args.world_size == 1 and not torch.accelerator.is_available()
        self.scores_in_chunks = is_alone and can_chunk(self.model, self._head, layout)
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                # On a quantized base TRL has cast it to bfloat16, in which most of AdamW's steps are rounded away
                # because the factors do not start at zero.
                parameter.data = parameter.data.float()

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.loraplus_ratio is not None and self.optimizer is None:
            self.optimizer = create_loraplus_optimizer(
                cast(PeftModel, self.model),
                torch.optim.AdamW,
                lr=self.args.learning_rate,
                loraplus_lr_ratio=self.loraplus_ratio,
                loraplus_weight_decay=self.args.weight_decay,
            )
        is_new = self.optimizer is None or self.loraplus_ratio is not None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if self.projector is not None and is_new:
            self._give_own_rate(optimizer, *self.projector)
        return optimizer

    def _give_own_rate(self, optimizer: torch.optim.Optimizer, module: str, rate: float) -> None:
        """Move the parameters of a module to groups with a learning rate of their own."""
        assert self.model is not None
        own = {id(part) for name, part in self.model.named_parameters() if f"{module}." in name}
        for group in list(optimizer.param_groups):
            moved = [part for part in group["params"] if id(part) in own]
            if moved:
                group["params"] = [part for part in group["params"] if id(part) not in own]
                optimizer.add_param_group({**group, "params": moved, "lr": rate})

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows = cast(Any, self.train_dataset)
        if PICTURES not in rows.column_names:
            return super()._get_train_sampler(train_dataset)
        has_pictures = [bool(paths) for paths in rows[PICTURES][:]]
        return ModalitySampler(
            has_pictures, self.args.per_device_train_batch_size * self.args.world_size, self.args.seed
        )

    def get_train_dataloader(self) -> Any:
        return forward_epochs(super().get_train_dataloader())

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Tensor | int | None]:
        """Return the batches of a step and their number of trained tokens, without the loss of repeated rows.

        If the rows of an epoch do not fill the last batch of all processes, accelerate repeats the first rows.
        """
        batches, tokens = super().get_batch_samples(epoch_iterator, num_batches, device)
        rows = self.args.per_device_train_batch_size
        left_over = len(cast(Sized, self.train_dataset)) % (rows * self.args.world_size)
        if self.args.world_size == 1 or not left_over or not self.accelerator.gradient_state.end_of_dataloader:
            return batches, tokens
        batches[-1]["labels"][max(0, left_over - self.args.process_index * rows) :] = IGNORED
        return batches, self._get_num_items_in_batch(batches, device)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Return the loss of a step, whose gradients are added pass by pass and exchanged after the last."""
        passes = self._divide(inputs)
        losses: list[Tensor] = []
        with self._scaled_penalty(1 / len(passes)):
            for number, batch in enumerate(passes, 1):
                is_last = number == len(passes)
                self.accelerator.sync_gradients = is_last
                with nullcontext() if is_last else self.accelerator.no_sync(model):
                    losses.append(super().training_step(model, batch, num_items_in_batch))  # type: ignore[no-untyped-call]
        return torch.stack(losses).sum()

    def _divide(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        groups = inputs.get(PICTURES)
        inputs = {name: value for name, value in inputs.items() if name != PICTURES}
        lengths = row_lengths(inputs)
        size = self.micro_batch_size
        if self.layout == "padded":
            rows = list(range(len(lengths)))
            parts = divide_rows(inputs, [rows[start : start + size] for start in range(0, len(rows), size)])
            return [{**part, PICTURES: [group]} for part, group in zip(parts, groups, strict=True)] if groups else parts
        passes = count_passes(lengths, size * max(lengths))
        if self.args.world_size > 1:  # each pass gathers sharded weights from all processes
            passes = int(self.accelerator.gather(torch.tensor(passes, device=self.args.device)).max())
        return [dict(part) for part in divide_rows(inputs, balance_rows(lengths, passes))]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss; TRL's own, whose head scores every position on a CPU, only where its kernels run."""
        is_blind = self.projector is not None and not any(inputs.get(PICTURES, [{}]))
        inputs = lay_out(take_group(inputs), self.layout)
        if torch.accelerator.is_available() or return_outputs:
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[no-untyped-call]
        else:
            loss = loss_of_trained_tokens(
                model, self._head, inputs, num_items_in_batch, in_chunks=self.scores_in_chunks
            )
            # The count is that of all processes, over which gradients are averaged.
            loss = loss if num_items_in_batch is None else loss * self.accelerator.num_processes
        return loss + self._zero_of_projector() if is_blind and not return_outputs else loss

    @property
    def _head(self) -> nn.Module:
        head: nn.Module = cast(PreTrainedModel, self.model).get_output_embeddings()  # type: ignore[no-untyped-call]
        return head

    def _zero_of_projector(self) -> Tensor:
        """Return 0 with a gradient of 0 at the projector, which a pass without pictures does not use."""
        assert self.projector is not None and self.model is not None
        name = f"{self.projector[0]}."
        own = [part for key, part in self.model.named_parameters() if name in key and part.requires_grad]
        return torch.stack([0.0 * part.sum() for part in own]).sum()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log a loss with the speed and the size of the update, for every tracker."""
        if "loss" in logs:
            at_checkpoint = self.state.global_step % int(self.args.save_steps) == 0
            update = watch_update(self.model, with_ranks=at_checkpoint) if isinstance(self.model, PeftModel) else {}
            logs = {**logs, **self.speed.measure(), **update}
        super().log(logs, start_time)

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """Return the metrics with the cross-entropy alone: AdaLoRA adds a penalty to its loss in evaluation too."""
        with self._scaled_penalty(0.0):
            return super().evaluate(*arguments, **options)

    @contextmanager
    def _scaled_penalty(self, factor: float) -> Iterator[None]:
        """Scale the penalty that AdaLoRA adds to each loss inside the context."""
        config = self.model.active_peft_config if isinstance(self.model, PeftModel) else None
        if not isinstance(config, AdaLoraConfig):
            yield
            return
        penalty = config.orth_reg_weight
        config.orth_reg_weight = penalty * factor
        try:
            yield
        finally:
            config.orth_reg_weight = penalty

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the adapter unsharded, with its initial factors."""
        if isinstance(self.model, PeftModel):
            state = self.gather_state()
            with warnings.catch_warnings():
                # Of a base with added tokens only their rows are saved, which is what PEFT is given.
                warnings.filterwarnings("ignore", message="Setting `save_embedding_layers` to `True`")
                self._save(output_dir, state_dict=state)
        else:
            super().save_model(output_dir, _internal_call)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with writing(Path(str(self.args.output_dir)) / f"{CHECKPOINT}{self.state.global_step}"):
            super()._save_checkpoint(model, trial)  # type: ignore[no-untyped-call]

    def gather_state(self) -> dict[str, Tensor]:
        """Return the unsharded tensors of the adapter, or of a fully tuned model; every process must call this."""
        if not isinstance(self.model, PeftModel):
            return self.accelerator.get_state_dict(self.model_wrapped)  # type: ignore[no-any-return]
        parameters = {
            name: tensor
            for name, tensor in self.model.named_parameters()
            # AdaLoRA keeps the sizes of its ranks in frozen ones; a projector may be trained in a first stage alone.
            if tensor.requires_grad or "lora_" in name or ".modules_to_save." in name
        }
        initial = {name: tensor for name, tensor in self.model.named_buffers() if "lora_" in name}
        with gather_params_ctx(list(parameters.values()), modifier_rank=None):
            state = parameters | initial
            return {name: _whole(tensor).detach().to("cpu", copy=True) for name, tensor in state.items()}

    def close(self) -> None:
        """Reset transformers' DeepSpeed config: models loaded afterwards are not sharded like the trained one."""
        unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
