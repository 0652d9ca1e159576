"""Liger's kernels: refused where they cannot run, and the same losses and gradients where they can."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers.utils.import_utils import is_liger_kernel_available

import milora
from milora import MiloraError
from milora.models.kernels import check_liger, use_liger
from tests.architectures import ARCHITECTURES

can_run = torch.cuda.is_available() and is_liger_kernel_available()
needs_liger = pytest.mark.skipif(not can_run, reason="needs a GPU and liger-kernel")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
@pytest.mark.parametrize("command, expected", [("train", 2), ("doctor", 1)])
def test_refused_without_a_gpu(small_recipe, call, tmp_path, command, expected):
    code, out, err = call(command, small_recipe, "training.liger_kernels=true", "--runs", tmp_path / "runs")
    assert code == expected, out
    assert "Liger's kernels run on a GPU, and there is none\nhint: leave it out" in err


@pytest.mark.skipif(is_liger_kernel_available(), reason="liger-kernel is installed")
def test_refused_without_the_package(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    with pytest.raises(MiloraError, match=r"needs the package liger-kernel \(pip install liger-kernel\)"):
        check_liger()


@needs_liger
@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral"])
def test_losses_and_gradients_are_those_without_kernels(name):
    base = ARCHITECTURES[name].build().cuda()
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    milora.initialize_lora_milora_weights(model)
    batch = {key: part.cuda() for key, part in ARCHITECTURES[name].batch().items()}

    def measure():
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        return loss.detach(), [part.grad.clone() for part in model.parameters() if part.grad is not None]

    before = measure()
    use_liger(base)
    torch.testing.assert_close(measure(), before, atol=1e-5, rtol=1e-5)


@needs_liger
def test_an_architecture_without_kernels_is_refused():
    with pytest.raises(MiloraError, match="no kernels for the architecture gpt2"):
        use_liger(ARCHITECTURES["gpt2"].build().cuda())
