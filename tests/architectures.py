"""Tiny random models of many architectures, built from their configs alone, each with inputs and a loss."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
)

VOCABULARY = 96
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# Of most configs with experts; few tokens reach each expert, and all of them are used by the inputs.
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Architecture:
    """A model by its type's name in transformers.

    Attributes:
        model_type: as in `config.json`.
        changes: of the config, beside `SIZES`.
        auto: the class with the head that is tried.
        inputs: a batch with labels.
        targets: `target_modules` of the adapter.
        refusal: what the error contains if the adapter cannot be initialized; empty if it can.
    """

    model_type: str
    changes: dict[str, Any] = field(default_factory=dict)
    auto: Any = AutoModelForCausalLM
    inputs: Callable[[], Inputs] | None = None
    targets: str | list[str] = "all-linear"
    refusal: str = ""

    def build(self, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        """Return the model, drawn anew from the same seed, in eval mode."""
        torch.manual_seed(0)
        config = AutoConfig.for_model(self.model_type, **self.changes)
        model: PreTrainedModel = self.auto.from_config(config, dtype=torch.float32)
        return model.to(dtype).eval()

    def batch(self) -> Inputs:
        return (self.inputs or text)()


def tokens(rows: int = 2, length: int = 12) -> Tensor:
    return torch.randint(3, VOCABULARY - 8, (rows, length), generator=torch.Generator().manual_seed(3))


def text() -> Inputs:
    return {"input_ids": tokens(), "labels": tokens()}


def causal(model_type: str, **changes: Any) -> Architecture:
    """A decoder with the common names of sizes."""
    return Architecture(model_type, SIZES | changes)


def experts(model_type: str, **changes: Any) -> Architecture:
    """A decoder whose feed-forward layers are mixtures of experts."""
    return Architecture(model_type, SIZES | EXPERTS | changes)


ARCHITECTURES: dict[str, Architecture] = {
    "llama": causal("llama"),
    "mistral": causal("mistral"),
    "qwen2": causal("qwen2"),
    "qwen3": causal("qwen3", head_dim=8),
    "gemma2": causal("gemma2", head_dim=8, query_pre_attn_scalar=8),
    "phi3": causal("phi3"),
    "mixtral": experts("mixtral"),
    "qwen2_moe": experts("qwen2_moe", shared_expert_intermediate_size=24),
    "qwen3_moe": experts("qwen3_moe", head_dim=8),
    "olmoe": experts("olmoe"),
}
