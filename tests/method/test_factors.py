"""Many weights at once: the same factors whatever the number of cores, and from the cache."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load

import milora
from milora import MiloraError


def _fresh(load_small, **options):
    return get_peft_model(load_small(), LoraConfig(r=4, target_modules=["q_proj", "down_proj"], **options))


def _same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_jobs_give_the_same_factors(load_small):
    torch.set_num_threads(1)
    alone = milora.get_milora_state_dict(_fresh(load_small))
    assert _same(alone, milora.get_milora_state_dict(_fresh(load_small), jobs=2))


def test_equal_weights_at_once_share_a_cache(load_small, tmp_path):
    model = _fresh(load_small)
    layers = [part for part in model.modules() if hasattr(part, "lora_A") and part.in_features == part.out_features]
    for layer in layers:
        layer.get_base_layer().weight.data = layers[0].get_base_layer().weight.data.clone()
    state = milora.get_milora_state_dict(model, jobs=4, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3 and len(state) == 12


def test_jobs_below_one_are_refused(load_small):
    with pytest.raises(MiloraError, match="jobs=0"):
        milora.get_milora_state_dict(_fresh(load_small), jobs=0)


def test_every_layer_reports_its_certificate(load_small):
    report = milora.initialize_lora_milora_weights(_fresh(load_small))
    for layer in report.layers.values():
        assert layer.certificate is not None and layer.certificate.residual < 1e-5


def test_cache_is_found_by_weight_and_options(load_small, tmp_path):
    first = milora.get_milora_state_dict(_fresh(load_small), cache=tmp_path)
    entries = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert len(entries) == 4
    assert _same(first, milora.get_milora_state_dict(_fresh(load_small), cache=tmp_path))
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == entries
    milora.get_milora_state_dict(_fresh(load_small), components="principal", cache=tmp_path)
    milora.get_milora_state_dict(_fresh(load_small, lora_alpha=16), cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 12


@pytest.mark.parametrize(
    "harm", [lambda data: data[: len(data) // 2], lambda data: data[:-8] + bytes(8), lambda data: b""]
)
def test_a_harmed_entry_is_made_again(load_small, tmp_path, harm):
    first = milora.get_milora_state_dict(_fresh(load_small), cache=tmp_path)
    whole = {file: load(file.read_bytes()) for file in tmp_path.iterdir()}
    for file in whole:
        harmed = harm(file.read_bytes())
        file.unlink()  # not in place: what was loaded is mapped from it
        file.write_bytes(harmed)
    assert _same(first, milora.get_milora_state_dict(_fresh(load_small), cache=tmp_path))
    assert all(_same(load(file.read_bytes()), tensors) for file, tensors in whole.items())
