"""Tiny random models of many architectures, built from their configs alone, each with inputs and a loss."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
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


def answer(model: nn.Module, architecture: Architecture) -> Tensor:
    """Return the logits of the architecture's own batch."""
    dtype = next(model.parameters()).dtype
    batch = {name: part.to(dtype) if part.is_floating_point() else part for name, part in architecture.batch().items()}
    with torch.no_grad():
        logits: Tensor = model.eval()(**batch).logits
    return logits


def tokens(rows: int = 2, length: int = 12) -> Tensor:
    return torch.randint(3, VOCABULARY - 8, (rows, length), generator=torch.Generator().manual_seed(3))


def text() -> Inputs:
    return {"input_ids": tokens(), "labels": tokens()}


def image(size: int = 16) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(4))


def picture() -> Inputs:
    return {"pixel_values": image(), "labels": torch.tensor([0, 1])}


def speech() -> Inputs:
    sound = torch.randn(2, 8, 40, generator=torch.Generator().manual_seed(5))
    return {"input_features": sound, "labels": tokens()}


def captioned(patches: int, begin: list[int] | None = None, end: list[int] | None = None, **more: Tensor) -> Inputs:
    """A picture of `patches` tokens, each `IMAGE_TOKEN`, and text."""
    marked = torch.tensor([[*(begin or []), *[IMAGE_TOKEN] * patches, *(end or [])]] * 2)
    ids = torch.cat([marked, tokens()], dim=1)
    return {"input_ids": ids, "labels": ids, "pixel_values": image(), **more}


def qwen_vl() -> Inputs:
    """Patches in rows of 3 channels x 2 frames x 4 x 4 pixels; each 2 x 2 of them are one token."""
    patches = torch.randn(2 * 16, 3 * 2 * 4 * 4, generator=torch.Generator().manual_seed(4))
    grid = torch.tensor([[1, 4, 4]] * 2)
    inputs = captioned(4, [VISION_START], pixel_values=patches, image_grid_thw=grid)
    return inputs | {"mm_token_type_ids": (inputs["input_ids"] == IMAGE_TOKEN).int()}


def causal(model_type: str, targets: str | list[str] = "all-linear", **changes: Any) -> Architecture:
    """A decoder with the common names of sizes."""
    return Architecture(model_type, SIZES | changes, targets=targets)


def experts(
    model_type: str, targets: str | list[str] = "all-linear", *, refusal: str = "", **changes: Any
) -> Architecture:
    """A decoder whose feed-forward layers are mixtures of experts."""
    return Architecture(model_type, SIZES | EXPERTS | changes, targets=targets, refusal=refusal)


def masked(model_type: str, **changes: Any) -> Architecture:
    return Architecture(model_type, SIZES | changes, AutoModelForMaskedLM)


def seq2seq(model_type: str, **changes: Any) -> Architecture:
    """An encoder and a decoder, named as in BART's family."""
    sizes = {"d_model": 32, "decoder_start_token_id": 2, "is_encoder_decoder": True}
    for part in ("encoder", "decoder"):
        sizes |= {f"{part}_layers": 2, f"{part}_ffn_dim": 48, f"{part}_attention_heads": 4}
    return Architecture(model_type, SIZES | sizes | changes, AutoModelForSeq2SeqLM)


def t5(model_type: str, **changes: Any) -> Architecture:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
    start = {"vocab_size": VOCABULARY, "decoder_start_token_id": 0}
    return Architecture(model_type, sizes | start | changes, AutoModelForSeq2SeqLM)


def vision(model_type: str, **changes: Any) -> Architecture:
    sizes = {"image_size": 16, "patch_size": 4, "num_labels": 8}
    return Architecture(model_type, SIZES | sizes | changes, AutoModelForImageClassification, picture)


def vlm(
    model_type: str,
    text_type: str,
    vision_config: dict[str, Any],
    inputs: Callable[[], Inputs],
    *,
    text: dict[str, Any] | None = None,
    **changes: Any,
) -> Architecture:
    """A vision encoder, and a decoder of another type."""
    parts = {
        "text_config": {"model_type": text_type, **SIZES, **(text or {})},
        "vision_config": VISION | vision_config,
        "image_token_id": IMAGE_TOKEN,
        "image_token_index": IMAGE_TOKEN,
    }
    return Architecture(model_type, parts | changes, AutoModelForImageTextToText, inputs)


IMAGE_TOKEN, VISION_START = 90, 91
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}
ROPE_SECTIONS = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
QWEN_VISION = {
    "depth": 2,
    "num_heads": 4,
    "patch_size": 4,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "in_channels": 3,
    "in_chans": 3,
}

DECODERS = {
    "llama": causal("llama"),
    "mistral": causal("mistral"),
    "qwen2": causal("qwen2"),
    "qwen3": causal("qwen3", head_dim=8),
    "qwen3_5_text": causal(
        "qwen3_5_text",
        head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        layer_types=["linear_attention", "full_attention"],
    ),
    "gemma": causal("gemma", head_dim=8),
    "gemma2": causal("gemma2", head_dim=8, query_pre_attn_scalar=8),
    "gemma3_text": causal("gemma3_text", head_dim=8, layer_types=["sliding_attention", "full_attention"]),
    "gemma3n_text": causal(
        "gemma3n_text",
        head_dim=8,
        vocab_size_per_layer_input=VOCABULARY,
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=0,
        laurel_rank=4,
        activation_sparsity_pattern=[0.0, 0.0],
        layer_types=["sliding_attention", "full_attention"],
        intermediate_size=[48, 48],
    ),
    "phi": causal("phi"),
    "phi3": causal("phi3"),
    "gpt2": causal("gpt2", n_embd=32, n_head=4, n_layer=2, n_positions=64),
    "gpt_neo": causal("gpt_neo", num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]]),
    "gpt_neox": causal("gpt_neox"),
    "gptj": causal("gptj", n_embd=32, n_head=4, n_layer=2, rotary_dim=4),
    "codegen": causal("codegen", n_embd=32, n_head=4, n_layer=2, rotary_dim=4),
    "gpt_bigcode": causal("gpt_bigcode", n_embd=32, n_head=4, n_layer=2, n_positions=64),
    "opt": causal("opt", ffn_dim=48, word_embed_proj_dim=32),
    "bloom": causal("bloom", n_layer=2, n_head=4),
    "falcon": causal("falcon", alibi=False, new_decoder_architecture=True),
    "mpt": causal("mpt", d_model=32, n_heads=4, n_layers=2, max_seq_len=64),
    "starcoder2": causal("starcoder2"),
    "stablelm": causal("stablelm"),
    "cohere": causal("cohere"),
    "olmo2": causal("olmo2"),
    "granite": causal("granite"),
    "smollm3": causal("smollm3"),
    "exaone4": causal("exaone4"),
    "nemotron": causal("nemotron"),
    "glm4": causal("glm4", head_dim=8),
    "persimmon": causal("persimmon"),
    "seed_oss": causal("seed_oss", head_dim=8),
}
# PEFT cannot put a LoRA on the router of Phi, which is a Linear with another output, and so not on "all-linear".
MIXTURES = {
    "mixtral": experts("mixtral"),
    "qwen2_moe": experts(
        "qwen2_moe", refusal="shared_expert_gate: rank 4 is above 1", shared_expert_intermediate_size=24
    ),
    "qwen3_moe": experts("qwen3_moe", head_dim=8),
    "olmoe": experts("olmoe"),
    "deepseek_v3": experts(
        "deepseek_v3",
        n_routed_experts=4,
        n_group=2,
        topk_group=1,
        n_shared_experts=1,
        first_k_dense_replace=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
        num_key_value_heads=4,
    ),
    "gpt_oss": experts("gpt_oss", head_dim=8, layer_types=["sliding_attention", "full_attention"]),
    "granitemoe": experts("granitemoe"),
    "phimoe": experts("phimoe", ["q_proj", "v_proj"]),
    "qwen3_next": experts(
        "qwen3_next",
        refusal="shared_expert_gate: rank 4 is above 1",
        head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        layer_types=["linear_attention", "full_attention"],
        shared_expert_intermediate_size=24,
    ),
}
# PEFT refuses out_proj of Mamba, which a fused kernel reads without its adapter, and so "all-linear".
STATE_SPACES = {
    "mamba": causal("mamba", ["in_proj", "x_proj"], state_size=8, time_step_rank=4),
    "mamba2": causal("mamba2", ["in_proj"], state_size=8, num_heads=8, head_dim=8, n_groups=1, chunk_size=8),
    "falcon_mamba": causal("falcon_mamba", ["in_proj", "x_proj"], state_size=8, time_step_rank=4),
    "falcon_h1": causal(
        "falcon_h1",
        ["q_proj", "v_proj", "in_proj", "up_proj", "down_proj"],
        head_dim=8,
        mamba_d_ssm=32,
        mamba_n_heads=4,
        mamba_d_head=8,
        mamba_d_state=8,
        mamba_n_groups=1,
        mamba_chunk_size=8,
    ),
    "bamba": causal(
        "bamba",
        mamba_n_heads=8,
        mamba_d_head=8,
        mamba_d_state=8,
        mamba_n_groups=1,
        mamba_chunk_size=8,
        attn_layer_indices=[1],
    ),
    "jamba": experts(
        "jamba",
        attn_layer_period=2,
        attn_layer_offset=1,
        mamba_d_state=8,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
        expert_layer_period=2,
        expert_layer_offset=1,
    ),
    "recurrent_gemma": causal(
        "recurrent_gemma", lru_width=32, head_dim=8, block_types=["recurrent", "attention"], attention_window_size=16
    ),
    "lfm2": causal("lfm2", layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False),
    "rwkv": causal("rwkv", attention_hidden_size=32),
}
SEQUENCE_TO_SEQUENCE = {
    "bart": seq2seq("bart"),
    "mbart": seq2seq("mbart"),
    "pegasus": seq2seq("pegasus"),
    "m2m_100": seq2seq("m2m_100"),
    "marian": seq2seq("marian", decoder_vocab_size=VOCABULARY),
    "t5": t5("t5"),
    "mt5": t5("mt5"),
    "longt5": t5("longt5"),
    "switch_transformers": t5(
        "switch_transformers", num_experts=4, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1
    ),
    "whisper": Architecture(
        "whisper",
        seq2seq("bart").changes | {"num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 64},
        AutoModelForSpeechSeq2Seq,
        speech,
    ),
}
ENCODERS = {
    "bert": masked("bert"),
    "roberta": masked("roberta", max_position_embeddings=66),
    "xlm_roberta": masked("xlm-roberta", max_position_embeddings=66),
    "electra": masked("electra", embedding_size=32),
    "albert": masked("albert", embedding_size=16),
    "distilbert": masked("distilbert", dim=32, hidden_dim=48, n_layers=2, n_heads=4),
    "deberta_v2": masked("deberta-v2", relative_attention=True, position_buckets=8, pos_att_type=["p2c", "c2p"]),
    "mpnet": masked("mpnet"),
    "modernbert": masked("modernbert", global_attn_every_n_layers=2, local_attention=8),
}
PICTURES = {
    "vit": vision("vit"),
    "ijepa": vision("ijepa"),
    "beit": vision("beit"),
    "dinov2": vision("dinov2"),
    "swin": Architecture(
        "swin",
        {
            "image_size": 16,
            "patch_size": 4,
            "num_labels": 8,
            "embed_dim": 16,
            "depths": [1, 1],
            "num_heads": [2, 4],
            "window_size": 2,
        },
        AutoModelForImageClassification,
        picture,
    ),
    "siglip": Architecture(
        "siglip",
        {"vision_config": VISION, "text_config": SIZES, "num_labels": 8},
        AutoModelForImageClassification,
        picture,
    ),
    "clip": Architecture(
        "clip",
        {"vision_config": VISION, "text_config": SIZES, "num_labels": 8},
        AutoModelForImageClassification,
        picture,
    ),
}
PICTURES_AND_TEXT = {
    "llava": vlm(
        "llava", "llama", {"model_type": "clip_vision_model"}, partial(captioned, 16), vision_feature_layer=-1
    ),
    "paligemma": vlm(
        "paligemma",
        "gemma",
        {"model_type": "siglip_vision_model"},
        partial(captioned, 16),
        projection_dim=32,
        text={"head_dim": 8},
    ),
    "gemma3": vlm(
        "gemma3",
        "gemma3_text",
        {"model_type": "siglip_vision_model"},
        partial(captioned, 4),
        text={"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]},
        mm_tokens_per_image=4,
    ),
    "qwen2_vl": vlm(
        "qwen2_vl",
        "qwen2_vl_text",
        {**QWEN_VISION, "embed_dim": 32, "hidden_size": 32},
        qwen_vl,
        text={"rope_parameters": ROPE_SECTIONS},
        vision_start_token_id=VISION_START,
    ),
    "qwen2_5_vl": vlm(
        "qwen2_5_vl",
        "qwen2_5_vl_text",
        {**QWEN_VISION, "out_hidden_size": 32, "window_size": 16, "fullatt_block_indexes": [1]},
        qwen_vl,
        text={"rope_parameters": ROPE_SECTIONS},
        vision_start_token_id=VISION_START,
    ),
    "idefics3": vlm("idefics3", "llama", {}, partial(captioned, 4, pixel_values=image()[:, None]), scale_factor=2),
    "internvl": vlm(
        "internvl", "qwen2", {"image_size": [16, 16], "patch_size": [4, 4]}, partial(captioned, 4), downsample_ratio=0.5
    ),
}
ARCHITECTURES: dict[str, Architecture] = {
    **DECODERS,
    **MIXTURES,
    **STATE_SPACES,
    **SEQUENCE_TO_SEQUENCE,
    **ENCODERS,
    **PICTURES,
    **PICTURES_AND_TEXT,
}
