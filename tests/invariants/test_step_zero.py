"""Invariant 1: at step 0 the model is the base model.

Broken by: a product of factors that does not cancel exactly, a second dropout mask, an initialization that writes to
the base in intact form, a residual that subtracts other factors than it adds.
"""

import pytest
import torch

from tests.conftest import add_milora, drift, logits_of, make_gpt2, make_qwen, some_tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("components", ["minor", "principal", "middle", "random"])
def test_intact_is_the_base_bit_for_bit(load_small, dtype, dropout, components):
    base = load_small(dtype)
    expected = logits_of(base)
    model = add_milora(base, dropout=dropout, components=components, lora_alpha=16)
    with torch.no_grad():
        found = model.train()(some_tokens(model)).logits
    assert torch.equal(found, expected)


@pytest.mark.parametrize("make", [make_gpt2, make_qwen])
@pytest.mark.parametrize("weighting", ["singular", "orthonormal"])
@pytest.mark.parametrize("form", ["intact", "residual"])
def test_conv1d_and_biases(make, weighting, form):
    base = make()
    expected = logits_of(base)
    targets = ["c_attn", "c_fc", "c_proj"] if make is make_gpt2 else "all-linear"
    model = add_milora(base, weighting=weighting, form=form, target_modules=targets, fan_in_fan_out=make is make_gpt2)
    assert drift(logits_of(model), expected) <= (0 if form == "intact" else 1e-6)


@pytest.mark.parametrize("components", ["minor", "principal"])
def test_residual_is_the_base_up_to_rounding(load_small, components):
    base = load_small()
    expected = logits_of(base)
    assert drift(logits_of(add_milora(base, form="residual", components=components)), expected) < 1e-5


def test_patterns_and_rslora_are_read_from_the_layers(load_small):
    base = load_small()
    expected = logits_of(base)
    model = add_milora(
        base, r=8, lora_alpha=4, use_rslora=True, rank_pattern={"q_proj": 3}, alpha_pattern={"up_proj": 32},
        form="residual", components="principal",
    )  # fmt: skip
    assert drift(logits_of(model), expected) < 1e-5


def test_gradients_are_those_of_the_papers_form(load_small):
    """dL/dA and dL/dB do not depend on the form."""
    gradients = []
    for form in ("intact", "residual"):
        model = add_milora(load_small(), form=form, lora_alpha=16)
        tokens = some_tokens(model)
        model(tokens, labels=tokens).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert drift(*gradients) < 1e-3
    assert gradients[0].abs().max() > 0
