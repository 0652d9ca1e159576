"""Tiny LLaVA and Qwen2-VL models with random weights, real processors and a real tokenizer; and files of pictures."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessorPil,
    LlavaProcessor,
    PreTrainedTokenizerBase,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

LAYERS = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
# The parts of a message, in order; a turn ends with <|im_end|>.
CHAT = (
    "{%% for message in messages %%}{{ '<|im_start|>' + message.role + '\\n' }}"
    "{%% for part in message.content %%}{{ '%s' if part.type == 'image' else part.text }}{%% endfor %%}"
    "{{ '<|im_end|>\\n' }}{%% endfor %%}{%% if add_generation_prompt %%}{{ '<|im_start|>assistant\\n' }}{%% endif %%}"
)


def make_llava(folder: Path, text_model: Path) -> Path:
    """4 x 4 patches of 8 pixels: 16 tokens for a picture of any size. The tokenizer is that of `text_model`."""
    torch.manual_seed(5)
    tokenizer = AutoTokenizer.from_pretrained(text_model)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.chat_template = CHAT % "<image>\n"
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    text = LlamaConfig(**LAYERS, vocab_size=len(tokenizer), **_ends(tokenizer))
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    sizes: dict[str, Any] = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    LlavaProcessor(
        LlavaImageProcessorPil(**sizes),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=tokenizer.chat_template,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return folder


def make_qwen_vl(folder: Path, text_model: Path) -> Path:
    """A token for each 2 x 2 patches of 4 pixels, so that their number depends on the picture's size."""
    torch.manual_seed(6)
    tokenizer = AutoTokenizer.from_pretrained(text_model)
    marks = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    tokenizer.chat_template = CHAT % "<|vision_start|><|image_pad|><|vision_end|>"
    ids = dict(
        zip(("vision_start", "vision_end", "image", "video"), tokenizer.convert_tokens_to_ids(marks), strict=True)
    )
    config = Qwen2VLConfig(
        text_config={
            **LAYERS,
            **_ends(tokenizer),
            "vocab_size": len(tokenizer),
            "rope_scaling": {"rope_type": "default", "type": "default", "mrope_section": [2, 3, 3]},
        },
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 64,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 4,
            "temporal_patch_size": 2,
        },
        **{f"{name}_token_id": token for name, token in ids.items()},
    )
    Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(patch_size=4, size={"shortest_edge": 16 * 16, "longest_edge": 32 * 32}).save_pretrained(
        folder
    )
    return folder


def _ends(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    return {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}


def draw(path: Path, color: str = "red", size: tuple[int, int] = (40, 24)) -> str:
    """Write a picture of one color with a dark quarter, and return its path."""
    picture = Image.new("RGB", size, color)
    picture.paste("black", (0, 0, size[0] // 2, size[1] // 2))
    picture.save(path)
    return str(path)
