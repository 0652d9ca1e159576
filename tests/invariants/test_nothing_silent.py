"""Invariant 5: no call silently gives another model.

Broken by: a config that plain PEFT accepts, factors that are not checked against the base, an option that is accepted
and ignored, a PEFT method that reads lora_A and lora_B alone.
"""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import convert_to_lora

import milora
from milora import MiloraError, MiloraWarning
from tests.conftest import add_milora, drift, logits_of, make_gpt2, make_qwen, train_briefly


def test_plain_peft_refuses_the_raw_adapter(load_small, tmp_path):
    train_briefly(add_milora(load_small())).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="milora"):
        PeftModel.from_pretrained(load_small(), tmp_path)


def test_load_refuses_another_base(load_small, tmp_path):
    add_milora(load_small()).save_pretrained(tmp_path)
    other = load_small()
    torch.nn.init.normal_(other.model.layers[1].mlp.up_proj.weight)
    with pytest.raises(MiloraError, match=r"layers\.1\.mlp\.up_proj.*not of this base"):
        milora.load_milora(other, tmp_path)
    assert not any("lora" in name for name, _ in other.named_modules()), "a refused base must not change"


def test_load_accepts_the_base_in_another_dtype(load_small, tmp_path):
    add_milora(load_small()).save_pretrained(tmp_path)
    with pytest.warns(MiloraWarning, match="have bfloat16 weights, and the adapter was made from float32 ones"):
        milora.load_milora(load_small(torch.bfloat16), tmp_path)


def test_load_refuses_a_base_of_another_shape(load_small, tmp_path):
    add_milora(make_qwen()).save_pretrained(tmp_path)
    with pytest.raises(MiloraError, match="not of this base"):
        milora.load_milora(load_small(), tmp_path)


def test_load_refuses_ordinary_adapters(load_small, tmp_path):
    get_peft_model(load_small(), LoraConfig(r=4, target_modules="all-linear")).save_pretrained(tmp_path)
    with pytest.raises(MiloraError, match="ordinary adapter"):
        milora.load_milora(load_small(), tmp_path)


def test_load_refuses_incomplete_files(load_small, tmp_path):
    with pytest.raises(MiloraError, match=r"does not contain adapter_model\.safetensors"):
        milora.load_milora(load_small(), tmp_path)
    add_milora(load_small()).save_pretrained(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(MiloraError, match="is incomplete"):
        milora.load_milora(load_small(), tmp_path)


@pytest.mark.slow
def test_an_ordinary_lora_is_not_loaded_over_a_milora_adapter(load_small, tmp_path):
    milora.save_milora_as_lora(tmp_path, train_briefly(add_milora(load_small())), rank=8)
    model = train_briefly(add_milora(load_small()))
    before = logits_of(model)
    for subject in (copy.deepcopy(model), model):
        with pytest.raises(MiloraError, match="over the MiLoRA adapter"):
            subject.load_adapter(tmp_path, "default")
    assert torch.equal(logits_of(model), before)
    model.load_adapter(tmp_path, "portable")


def test_saved_config_names_the_original_base(small_model, load_whole, tmp_path):
    model = add_milora(load_whole())
    model.save_pretrained(tmp_path)
    milora.save_milora_as_lora(tmp_path / "lora", model)
    for folder in (tmp_path, tmp_path / "lora"):
        assert LoraConfig.from_pretrained(folder).base_model_name_or_path == str(small_model)


def test_set_adapter_does_not_change_the_model(load_small):
    model = train_briefly(add_milora(load_small()))
    before = logits_of(model)
    model.set_adapter("default")
    assert torch.equal(logits_of(model), before)


def test_several_adapters_on_one_base(load_small):
    model = train_briefly(add_milora(load_small()))
    alone = logits_of(model)
    model.add_adapter("second", LoraConfig(r=4, target_modules=["q_proj"]))
    milora.initialize_lora_milora_weights(model, adapter_name="second", components="principal")
    assert torch.equal(logits_of(model), alone)
    model.set_adapter("second")
    assert torch.equal(logits_of(model), logits_of(load_small()))
    model.set_adapter("default")
    model.delete_adapter("second")
    assert torch.equal(logits_of(model), alone)
    assert not any("second" in name for name, _ in model.named_parameters())


def test_load_onto_a_model_that_has_adapters(load_small, tmp_path):
    model = train_briefly(add_milora(load_small()))
    model.save_pretrained(tmp_path)
    host = get_peft_model(load_small(), LoraConfig(r=4, target_modules=["q_proj"]))
    loaded = milora.load_milora(host, tmp_path, adapter_name="trained")
    loaded.set_adapter("trained")
    assert torch.equal(logits_of(loaded), logits_of(model))


@pytest.mark.parametrize("order", [["default", "plain"], ["plain", "default"]])
@pytest.mark.parametrize("combination", ["linear", "svd", "cat"])
def test_weighted_adapters_are_refused(load_small, order, combination):
    model = add_milora(load_small(), target_modules=["q_proj"])
    model.add_adapter("plain", LoraConfig(r=8, target_modules=["q_proj"]))
    for subject in (model, copy.deepcopy(model)):
        with pytest.raises(MiloraError, match="add_weighted_adapter"):
            subject.add_weighted_adapter(order, [1.0, 1.0], "mix", combination_type=combination)


def test_weighted_adapters_of_ordinary_loras_still_work(load_small):
    model = add_milora(load_small(), target_modules=["q_proj"])
    for name in ("one", "two"):
        model.add_adapter(name, LoraConfig(r=4, target_modules=["q_proj"]))
    model.add_weighted_adapter(["one", "two"], [1.0, 1.0], "mix", combination_type="cat")
    assert "mix" in model.peft_config


def test_pefts_own_conversion_is_refused(load_small):
    with pytest.raises(TypeError, match="do not support LoRA conversion"):
        convert_to_lora(add_milora(load_small()), rank=4)


def _disable(model):
    with model.disable_adapter():
        logits_of(model)


def _switch(model):
    model.add_adapter("other", LoraConfig(r=4, target_modules=["q_proj"]))
    model.set_adapter("other")
    logits_of(model)


def _delete(model):
    model.add_adapter("other", LoraConfig(r=4, target_modules=["q_proj"]))
    model.delete_adapter("default")
    logits_of(model)


def _mixed_batch(model):
    model.eval()
    with torch.no_grad():
        model(torch.ones(2, 4, dtype=torch.long), adapter_names=["default", "__base__"])


@pytest.mark.filterwarnings("ignore:Adapter default was active which is now deleted")
@pytest.mark.parametrize("misuse", [_disable, _switch, _delete, _mixed_batch, lambda model: model.unload()])
def test_residual_weights_are_never_used_alone(load_small, misuse):
    model = add_milora(load_small(), form="residual")
    for subject in (copy.deepcopy(model), model):
        with pytest.raises(MiloraError, match="residual"):
            misuse(subject)


def test_residual_merges(load_small):
    model = train_briefly(add_milora(load_small(), form="residual"))
    trained = logits_of(model)
    twin = copy.deepcopy(model)
    assert drift(logits_of(twin.merge_and_unload()), trained) < 1e-5
    assert torch.equal(logits_of(model), trained), "merging a copy must not change the original"


@pytest.mark.filterwarnings("ignore:Model (has|with) `tie_word_embeddings=True`")
def test_tied_layers_cannot_be_merged_or_made_residual():
    with pytest.raises(MiloraError, match=r"lm_head.*tied"):
        add_milora(make_gpt2(), form="residual", target_modules=["lm_head"])
    model = add_milora(make_gpt2(), target_modules=["lm_head"])
    with pytest.raises(MiloraError, match="tied"):
        model.merge_and_unload()


REFUSED_CONFIGS = {
    "use_dora": {"use_dora": True},
    "lora_bias": {"lora_bias": True, "target_modules": ["q_proj"]},
    "bias=": {"bias": "all"},
    "pissa": {"init_lora_weights": "pissa"},
    "lora.Embedding is not a linear layer": {"target_modules": ["embed_tokens"]},
}


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed", "ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize(("rule", "options"), REFUSED_CONFIGS.items(), ids=REFUSED_CONFIGS.keys())
def test_unsupported_configs(load_small, rule, options):
    config = LoraConfig(r=4, **{"target_modules": "all-linear", **options})
    model = get_peft_model(load_small(), config)
    with pytest.raises(MiloraError, match=rule):
        milora.initialize_lora_milora_weights(model)


def test_second_initialization(load_small):
    model = add_milora(load_small())
    with pytest.raises(MiloraError, match="already initialized"):
        milora.initialize_lora_milora_weights(model)


def test_rank_above_the_weights_names_layers_and_bound(load_small):
    with pytest.raises(MiloraError, match=r"2 × k_proj: rank 200 is above 192.*2 × v_proj: rank 200 is above 192"):
        add_milora(load_small(), r=200)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_refused_weight_does_not_change_the_model(load_small, poison):
    base = load_small()
    base.model.layers[1].mlp.down_proj.weight.data[0, 0] = poison
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    with pytest.raises(MiloraError, match=r"layers\.1\.mlp\.down_proj.*NaN or Inf"):
        add_milora(base, form="residual")
    after = {name.replace("base_layer.", ""): tensor for name, tensor in base.state_dict().items()}
    assert all(torch.equal(after[name].nan_to_num(), tensor.nan_to_num()) for name, tensor in before.items())


@pytest.mark.parametrize("option", [{"components": "smallest"}, {"form": "changed"}, {"weighting": "sqrt"}])
def test_unknown_options(load_small, option):
    with pytest.raises(MiloraError, match="is unknown"):
        add_milora(load_small(), **option)


def test_other_models_and_unknown_adapters(load_small):
    with pytest.raises(MiloraError, match="not a PeftModel"):
        milora.initialize_lora_milora_weights(load_small())
    with pytest.raises(MiloraError, match="no adapter 'other'"):
        add_milora(load_small(), adapter_name="other")


def test_export_of_an_ordinary_lora_is_refused(load_small, tmp_path):
    model = get_peft_model(load_small(), LoraConfig(r=4, target_modules="all-linear"))
    with pytest.raises(MiloraError, match="not initialized by milora"):
        milora.save_milora_as_lora(tmp_path, model)
