"""The cache of factors: its entries are addressed by weight and options, and verified."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load

import milora


def _fresh(load_small, **options):
    return get_peft_model(load_small(), LoraConfig(r=4, target_modules=["q_proj", "down_proj"], **options))


def _same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_an_entry_is_found_by_weight_and_options(load_small, tmp_path):
    first = milora.get_milora_state_dict(_fresh(load_small), cache=tmp_path)
    entries = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert len(entries) == 4
    assert _same(first, milora.get_milora_state_dict(_fresh(load_small), cache=tmp_path))
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == entries
    milora.get_milora_state_dict(_fresh(load_small), components="principal", cache=tmp_path)
    milora.get_milora_state_dict(_fresh(load_small, lora_alpha=16), cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 12


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: data[:-8] + bytes(8), lambda data: b""]
)
def test_a_damaged_entry_is_written_again(load_small, tmp_path, damage):
    first = milora.get_milora_state_dict(_fresh(load_small), cache=tmp_path)
    whole = {file: load(file.read_bytes()) for file in tmp_path.iterdir()}
    for file in whole:
        damaged = damage(file.read_bytes())
        file.unlink()  # not in place: what was loaded is mapped from it
        file.write_bytes(damaged)
    assert _same(first, milora.get_milora_state_dict(_fresh(load_small), cache=tmp_path))
    assert all(_same(load(file.read_bytes()), tensors) for file, tensors in whole.items())


def test_equal_weights_share_an_entry(load_small, tmp_path):
    model = _fresh(load_small)
    layers = [part for part in model.modules() if hasattr(part, "lora_A") and part.in_features == part.out_features]
    for layer in layers:
        layer.get_base_layer().weight.data = layers[0].get_base_layer().weight.data.clone()
    state = milora.get_milora_state_dict(model, jobs=4, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3 and len(state) == 16
