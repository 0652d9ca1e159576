"""The user's LoraConfig is never written to, and the adapter's own copies A₀ and B₀ to a second adapter.

Broken by: a mark that is set on the object which the user passed; a second adapter from a MiLoRA adapter's config that
is an ordinary LoRA; A₀ or B₀ among the parameters.
"""

import copy
import json
import pickle

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_lorafa_optimizer
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file

import milora
from milora import MiloraError
from tests.conftest import logits_of, make_gpt2, make_llama, train_briefly


def _config(**options):
    return LoraConfig(**{"r": 4, "target_modules": ["q_proj", "down_proj"], **options})


def _start(config, **options):
    model = get_peft_model(make_llama(), config)
    milora.initialize_lora_milora_weights(model, **options)
    return model


@pytest.mark.parametrize("form", ["intact", "residual"])
def test_a_config_serves_every_seed_of_a_loop(form):
    config = _config()
    get_peft_model(make_llama(), config)
    before = copy.deepcopy(config)
    states = [_start(config, form=form).state_dict() for _ in range(2)]
    assert vars(config) == vars(before)
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT for a second time")
@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")
def test_a_cell_that_is_run_twice():
    base, config = make_llama(), _config()
    for _ in range(2):
        model = get_peft_model(base, config)
        milora.initialize_lora_milora_weights(model)
        base = model.unload()
    assert torch.equal(logits_of(model), logits_of(make_llama()))


def test_a_second_adapter_from_the_users_config_is_ordinary():
    config = _config()
    model = _start(config)
    model.add_adapter("second", config)
    assert "second" not in model.base_model.model.model.layers[0].self_attn.q_proj.lora_variant
    milora.initialize_lora_milora_weights(model, adapter_name="second")
    model.set_adapter("second")
    assert torch.equal(logits_of(model), logits_of(make_llama()))


def test_loading_does_not_write_into_configs(tmp_path):
    config = _config()
    _start(config).save_pretrained(tmp_path)
    before = copy.deepcopy(config)
    milora.load_milora(get_peft_model(make_llama(), config, "host"), tmp_path)
    assert vars(config) == vars(before)


@pytest.mark.parametrize("name", ["default", "other"])
def test_plain_peft_says_how_to_load_the_raw_adapter(tmp_path, name):
    model = get_peft_model(make_llama(), _config(), adapter_name=name)
    milora.initialize_lora_milora_weights(model, adapter_name=name)
    model.save_pretrained(tmp_path)
    folder = tmp_path if name == "default" else tmp_path / name
    with pytest.raises(ValueError, match=r"load this adapter with milora\.load_milora"):
        PeftModel.from_pretrained(make_llama(), folder)
    assert torch.equal(logits_of(milora.load_milora(make_llama(), folder)), logits_of(make_llama()))


def _pickled(model):
    return pickle.loads(pickle.dumps(model))  # noqa: S301  its own


@pytest.mark.parametrize("copied", [lambda model: model, copy.deepcopy, _pickled])
@pytest.mark.parametrize("form", ["intact", "residual"])
def test_an_adapter_from_the_adapters_config_is_a_copy(form, copied):
    model = copied(_start(_config(), form=form))
    trained = logits_of(train_briefly(model))
    model.add_adapter("ref", model.peft_config["default"])
    model.set_adapter("ref")
    assert torch.equal(logits_of(model), trained)
    model.set_adapter("default")
    further = logits_of(train_briefly(model))
    assert not torch.equal(further, trained)
    model.set_adapter("ref")
    assert torch.equal(logits_of(model), trained)


@pytest.mark.filterwarnings("ignore:Adapter default was active which is now deleted")
def test_the_copy_outlives_its_original():
    model = train_briefly(_start(_config()))
    trained = logits_of(model)
    model.add_adapter("ref", model.peft_config["default"])
    model.delete_adapter("default")
    assert torch.equal(logits_of(model), trained)
    with pytest.raises(MiloraError, match="'default', which this model does not have"):
        model.add_adapter("third", model.peft_config["ref"])


def test_patterns_dropout_and_conv1d_are_copied():
    config = _config(target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, rank_pattern={"c_fc": 2}, lora_dropout=0.1)
    model = get_peft_model(make_gpt2(), config)
    milora.initialize_lora_milora_weights(model)
    trained = logits_of(train_briefly(model))
    model.add_adapter("ref", model.peft_config["default"])
    model.set_adapter("ref")
    assert torch.equal(logits_of(model), trained)


def test_the_copy_is_saved_loaded_merged_and_exported(tmp_path):
    model = train_briefly(_start(_config()))
    trained = logits_of(model)
    model.add_adapter("ref", model.peft_config["default"])
    train_briefly(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits_of(milora.load_milora(make_llama(), tmp_path / "ref")), trained)
    milora.save_milora_as_lora(tmp_path / "lora", model, adapter_name="ref")
    assert torch.allclose(logits_of(PeftModel.from_pretrained(make_llama(), tmp_path / "lora")), trained, atol=1e-6)
    model.set_adapter("ref")
    assert torch.allclose(logits_of(model.merge_and_unload()), trained, atol=1e-6)


def test_the_initial_factors_are_not_parameters(tmp_path):
    model = _start(_config())
    assert not any("initial" in name for name, _ in model.named_parameters())
    assert sum("lora_initial_A.default.weight" in name for name in model.state_dict()) == 4
    model.train().requires_grad_(True)
    model(torch.ones(1, 4, dtype=torch.long)).logits.sum().backward()
    assert all("lora_" not in name or parameter.grad is not None for name, parameter in model.named_parameters())


def test_a_model_of_its_own_from_the_adapters_config():
    model = get_peft_model(make_llama(), _start(_config()).peft_config["default"])
    milora.initialize_lora_milora_weights(model)
    assert torch.equal(logits_of(model), logits_of(make_llama()))


def test_an_ordinary_lora_that_was_saved_with_the_adapters_config_says_what_to_do(tmp_path):
    model = train_briefly(get_peft_model(make_llama(), _start(_config()).peft_config["default"]))
    model.save_pretrained(tmp_path)
    with pytest.raises(MiloraError, match='set "init_lora_weights": true'):
        milora.load_milora(make_llama(), tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"init_lora_weights": True}))
    assert torch.equal(logits_of(PeftModel.from_pretrained(make_llama(), tmp_path)), logits_of(model))


def test_layers_that_are_saved_with_the_adapter_are_copied_as_trl_copies_them():
    model = train_briefly(_start(_config(modules_to_save=["lm_head"])))
    trained = logits_of(model)
    model.add_adapter("ref", model.peft_config["default"])
    for name, parameter in model.named_parameters():
        if ".default." in name:
            model.get_parameter(name.replace(".default.", ".ref.")).data.copy_(parameter.data)
    model.set_adapter("ref")
    assert torch.equal(logits_of(model), trained)


def test_lora_fas_optimizer_freezes_a_alone():
    model = _start(_config())
    optimizer = create_lorafa_optimizer(model=model, r=4, lora_alpha=4, lr=1e-2)
    start, tokens = logits_of(model), torch.arange(20).reshape(2, 10)
    model.train()(tokens, labels=tokens).loss.backward()
    optimizer.step()
    frozen = {
        name.rpartition(".lora_")[2] for name, p in model.named_parameters() if "lora_" in name and not p.requires_grad
    }
    assert frozen == {"A.default.weight"} and not torch.equal(logits_of(model), start)


def test_a_milora_adapter_is_hot_swapped_for_another(tmp_path):
    trained = train_briefly(_start(_config()))
    trained.save_pretrained(tmp_path)
    model = _start(_config(), components="principal")
    hotswap_adapter(model, tmp_path, adapter_name="default", torch_device="cpu")
    assert torch.equal(logits_of(model), logits_of(trained))


def test_the_export_contains_nothing_else(tmp_path):
    milora.save_milora_as_lora(tmp_path, _start(_config()))
    names = {name.rpartition(".lora_")[2] for name in load_file(tmp_path / "adapter_model.safetensors")}
    assert names == {"A.weight", "B.weight"}
