"""Nothing is lost in silence when an adapter is initialized, and what is only a warning is one to Python, too."""

import types

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import milora
from milora import MiloraError, MiloraWarning
from tests.conftest import add_milora, logits_of, make_gpt2, make_llama, train_briefly


def _plain(base=None, **options):
    config = LoraConfig(**{"r": 4, "target_modules": ["q_proj", "down_proj"], **options})
    return get_peft_model(base or make_llama(), config)


def _q_proj(model, layer=0):
    return model.base_model.model.model.layers[layer].self_attn.q_proj


@pytest.mark.parametrize("init", [True, "gaussian"])
def test_a_trained_adapter_is_not_initialized(init):
    model = train_briefly(_plain(init_lora_weights=init))
    trained = logits_of(model)
    with pytest.raises(MiloraError, match=r"layers\.0\.self_attn\.q_proj: adapter 'default' is trained already"):
        milora.initialize_lora_milora_weights(model)
    assert torch.equal(logits_of(model), trained)


def test_a_loaded_adapter_is_not_initialized(tmp_path):
    train_briefly(_plain()).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(make_llama(), tmp_path, is_trainable=True)
    with pytest.raises(MiloraError, match="trained already"):
        milora.initialize_lora_milora_weights(model)


def test_one_trained_layer_is_enough():
    model = _plain()
    _q_proj(model, 1).lora_B["default"].weight.data[0, 0] = 1e-9
    with pytest.raises(MiloraError, match=r"layers\.1\.self_attn\.q_proj.* trained already"):
        milora.initialize_lora_milora_weights(model)


@pytest.mark.parametrize("init", [False, "orthogonal"])
def test_starts_with_another_b_are_initialized(init):
    model = _plain(init_lora_weights=init)
    milora.initialize_lora_milora_weights(model)
    assert torch.equal(logits_of(model), logits_of(make_llama()))


def test_an_exported_adapter_goes_on_after_it_is_merged(tmp_path):
    milora.save_milora_as_lora(tmp_path, train_briefly(add_milora(make_llama(), r=4)))
    merged = PeftModel.from_pretrained(make_llama(), tmp_path).merge_and_unload()
    expected = logits_of(merged)
    assert torch.equal(logits_of(add_milora(merged, r=4)), expected)


@pytest.mark.parametrize("alpha", [0, -8])
def test_a_scaling_that_is_not_positive(alpha):
    with pytest.raises(MiloraError, match=r"q_proj: the scaling -?\d is not positive"):
        milora.initialize_lora_milora_weights(_plain(lora_alpha=alpha))
    with pytest.raises(MiloraError, match=r"down_proj: the scaling"):
        milora.initialize_lora_milora_weights(_plain(alpha_pattern={"down_proj": alpha}))
    with pytest.raises(MiloraError, match="is not positive"):
        milora.decompose_weight(torch.randn(8, 8), 2, scaling=alpha)


def test_adapters_on_the_meta_device():
    model = get_peft_model(make_llama(), LoraConfig(r=4, target_modules=["q_proj"]), low_cpu_mem_usage=True)
    with pytest.raises(MiloraError, match="adapter 'default' is on the meta device"):
        milora.initialize_lora_milora_weights(model)


@pytest.mark.parametrize("make", [make_llama, make_gpt2])
def test_an_all_zero_weight(make):
    base = make()
    layer, targets = (base.model.layers[1].self_attn.q_proj, ["q_proj"]) if make is make_llama else (None, ["c_attn"])
    (layer or base.transformer.h[1].attn.c_attn).weight.data.zero_()
    with pytest.raises(MiloraError, match=rf"\.1\..*{targets[0]}: the weight is zero everywhere"):
        add_milora(base, r=4, target_modules=targets, fan_in_fan_out=make is make_gpt2)


def _fused(self, x):
    return x


@pytest.mark.parametrize("library", ["unsloth.kernels.fast_lora", "axolotl.kernels.lora"])
@pytest.mark.parametrize("attribute", ["apply_qkv", "forward"])
def test_fused_kernels_that_read_a_and_b_alone(library, attribute):
    model = _plain()
    kernel = types.FunctionType(_fused.__code__, {}, "apply_lora_qkv")
    kernel.__module__ = library
    attention = model.base_model.model.model.layers[0].self_attn
    setattr(attention, attribute, types.MethodType(kernel, attention))
    with pytest.raises(MiloraError, match=rf"self_attn: {library.partition('.')[0]}'s fused LoRA kernel"):
        milora.initialize_lora_milora_weights(model)


def test_other_functions_of_the_same_libraries_are_not_refused():
    model = _plain()
    kernel = types.FunctionType(_fused.__code__, {}, "original_apply_qkv")
    kernel.__module__ = "unsloth.models.llama"
    model.base_model.model.model.layers[0].self_attn.apply_qkv = kernel
    milora.initialize_lora_milora_weights(model)


def test_warnings_are_pythons_too(load_small):
    model = get_peft_model(load_small(), LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
    with pytest.warns(MiloraWarning, match="layers start from singular values below") as caught:
        report = milora.initialize_lora_milora_weights(model)
    assert [str(warning.message) for warning in caught] == report.warnings
    assert caught[0].filename == __file__, "the warning names the line that initializes"
    assert repr(report).splitlines()[0].startswith("InitializationReport: 4 layers of rank 8 in ")
    assert len(repr(report).splitlines()) == 2 and "v_proj" not in repr(report).splitlines()[0]


def test_a_cache_may_be_named_by_a_string(tmp_path):
    for _ in range(2):
        milora.initialize_lora_milora_weights(_plain(), cache=str(tmp_path / "factors"))
    assert len(list((tmp_path / "factors").glob("*.safetensors"))) == 4
    milora.get_milora_state_dict(_plain(), cache=str(tmp_path / "factors"))
