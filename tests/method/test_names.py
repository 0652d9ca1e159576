"""Adapters under the names that earlier versions of transformers gave to the layers of wrapped models."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import milora
from tests.architectures import ARCHITECTURES, answer
from tests.conftest import drift

WRAPPED = ["gemma3", "llava", "paligemma", "internvl"]
OLD = (  # the first that fits, as transformers wrote them until 4.51
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)


def rename(file, prefix=""):
    state = load_file(file)
    old = {}
    for name, part in state.items():
        inner = name.removeprefix(prefix)
        new = next((before + inner.removeprefix(now) for now, before in OLD if inner.startswith(now)), inner)
        old[prefix + new] = part
    assert old.keys() != state.keys()
    save_file(old, file, metadata={"format": "pt"})


@pytest.mark.parametrize("name", WRAPPED)
def test_an_adapter_of_earlier_names_is_loaded(name, tmp_path):
    architecture = ARCHITECTURES[name]
    config = LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "down_proj", "linear", "linear_1"])
    model = get_peft_model(architecture.build(), config)
    milora.initialize_lora_milora_weights(model)
    with torch.no_grad():
        for part in model.parameters():
            if part.requires_grad:
                part.add_(0.1)
    expected = answer(model, architecture)
    model.save_pretrained(tmp_path)
    rename(tmp_path / "adapter_model.safetensors", "base_model.model.")
    assert drift(answer(milora.load_milora(architecture.build(), tmp_path), architecture), expected) <= 1e-6
