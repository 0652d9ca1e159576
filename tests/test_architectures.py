"""Every architecture, from its start to its export, in the three lines of the README."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import milora
from tests.architectures import ARCHITECTURES, Architecture, answer
from tests.conftest import drift

# One of each kind; the others take a minute or two together.
QUICK = ("llama", "gpt2", "qwen3_moe", "mamba", "t5", "bert", "vit", "llava")
QUICKER = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES]


pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False"),
    pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match"),  # of PEFT's own making
    pytest.mark.filterwarnings("ignore:the adapter is on .* of the weights"),  # all-linear leaves most experts out
]


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exports")


def start(architecture: Architecture, dtype: torch.dtype = torch.float32) -> PeftModel:
    config = LoraConfig(r=4, lora_alpha=4, target_modules=architecture.targets)
    model = get_peft_model(architecture.build(dtype), config)
    milora.initialize_lora_milora_weights(model)
    return model


def train(model: PeftModel, architecture: Architecture) -> None:
    optimizer = torch.optim.AdamW([part for part in model.parameters() if part.requires_grad], lr=1e-2)
    model.train()
    for _ in range(5):
        model(**architecture.batch()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@pytest.mark.parametrize("name", QUICKER)
def test_an_adapter_starts_trains_reloads_exports_and_merges(name: str, exports: Path, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name]
    if architecture.refusal:
        with pytest.raises(milora.MiloraError, match=architecture.refusal):
            start(architecture)
        return
    base = answer(architecture.build(), architecture)
    model = start(architecture)
    assert drift(answer(model, architecture), base) <= 1e-6
    assert torch.equal(
        answer(start(architecture, torch.bfloat16), architecture),
        answer(architecture.build(torch.bfloat16), architecture),
    )

    train(model, architecture)
    trained = answer(model, architecture)
    assert drift(trained, base) > 1e-3
    with model.disable_adapter():
        assert torch.equal(answer(model, architecture), base)
    model.save_pretrained(str(tmp_path))
    assert drift(answer(milora.load_milora(architecture.build(), tmp_path), architecture), trained) <= 1e-6
    milora.save_milora_as_lora(exports / name, model)
    save_file({"logits": trained.contiguous()}, exports / f"{name}.safetensors")
    assert drift(answer(model.merge_and_unload(), architecture), trained) <= 1e-5


def test_plain_peft_answers_like_the_trained_models(exports: Path) -> None:
    """Of the models above that were tried: one fresh process for all."""
    subprocess.run([sys.executable, "-m", "tests.plain_peft", str(exports)], check=True)
    answers = load_file(exports / "answers.safetensors")
    assert answers
    drifts = {
        name: drift(found, load_file(exports / f"{name}.safetensors")["logits"]) for name, found in answers.items()
    }
    assert {name: found for name, found in drifts.items() if found > 1e-5} == {}
