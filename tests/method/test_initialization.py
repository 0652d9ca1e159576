"""The report of an initialization, and its factors as a state dict."""

import pytest
import torch

import milora
from milora import MiloraError
from tests.conftest import add_milora, drift, logits_of


def test_report_names_every_layer_and_warns_of_vanishing_factors(load_small):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(load_small(), LoraConfig(r=8, target_modules="all-linear"))
    report = milora.initialize_lora_milora_weights(model)
    assert len(report.layers) == 14
    q_proj = report.layers["base_model.model.model.layers.0.self_attn.q_proj"]
    assert q_proj.rank == 8 and q_proj.band[0] >= q_proj.band[1] and q_proj.rounding_error == 0
    # The q and o projections of the embedded model end in quantization noise.
    assert "factors near zero" in report.warnings[0]


def test_residual_reports_its_rounding_errors(load_small):
    from peft import LoraConfig, get_peft_model

    errors = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = get_peft_model(load_small(dtype), LoraConfig(r=8, target_modules=["v_proj"]))
        report = milora.initialize_lora_milora_weights(model, form="residual")
        errors[dtype] = max(layer.rounding_error for layer in report.layers.values())
    assert errors[torch.float32] < 1e-5 < 1e-3 < errors[torch.bfloat16] < 1


def test_state_dict_changes_nothing_and_starts_the_same_model(load_small):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    model = get_peft_model(load_small(), config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = milora.get_milora_state_dict(model)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    milora.initialize_lora_milora_weights(model, state)
    direct = add_milora(load_small(), lora_alpha=16)
    for name, parameter in direct.named_parameters():
        assert torch.equal(dict(model.named_parameters())[name], parameter)
    assert drift(logits_of(model), logits_of(load_small())) == 0


def test_state_dict_of_another_model_rank_or_layer_is_refused(load_small):
    from peft import LoraConfig, get_peft_model

    def fresh(r=8):
        return get_peft_model(load_small(), LoraConfig(r=r, target_modules=["v_proj"]))

    state = milora.get_milora_state_dict(fresh())
    with pytest.raises(MiloraError, match="has rank 8, and the adapter has rank 4"):
        milora.initialize_lora_milora_weights(fresh(4), state)
    missing = {name: tensor for name, tensor in state.items() if "layers.1" not in name}
    with pytest.raises(MiloraError, match="has no"):
        milora.initialize_lora_milora_weights(fresh(), missing)
    other = fresh()
    torch.nn.init.normal_(other.base_model.model.model.layers[0].self_attn.v_proj.base_layer.weight)
    with pytest.raises(MiloraError, match="not of this base"):
        milora.initialize_lora_milora_weights(other, state)
    near = fresh()
    near.base_model.model.model.layers[0].self_attn.v_proj.base_layer.weight.data.mul_(1.009)
    with pytest.raises(MiloraError, match="another, if only by a little"):
        milora.initialize_lora_milora_weights(near, state)
