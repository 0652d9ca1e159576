"""Every method: the base at step 0, the base under `disable_adapter()`, and the same answers once exported."""

import json
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from milora.method.checkpoint import load_milora
from milora.method.errors import MiloraError
from milora.run.directory import open_run
from milora.run.export import export_run
from milora.run.models import attach_adapter, load_model
from milora.run.recipe import AdapterSection
from milora.training.adapter import add_adapter
from tests.conftest import drift, logits_of, make_gpt2

METHODS = ["milora", "lora", "rslora", "loraplus", "dora", "mica", "pissa", "olora"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_step_zero_is_the_base(method, dtype, load_small):
    expected = logits_of(load_small(dtype))
    weights = {name: tensor.clone() for name, tensor in load_small(dtype).state_dict().items()}
    torch.manual_seed(0)
    model, _ = add_adapter(load_small(dtype), AdapterSection(method=method, rank=8, alpha=16), seed=0, jobs=1)
    if method == "dora":  # it divides the weight by its norm and multiplies again, in bf16 each rounded
        assert drift(logits_of(model), expected) <= (1e-6 if dtype == torch.float32 else 1e-2)
    else:
        assert torch.equal(logits_of(model), expected)
    with model.disable_adapter():
        assert torch.equal(logits_of(model), expected)
    kept = {name.replace(".base_layer", ""): tensor for name, tensor in model.get_base_model().state_dict().items()}
    assert all(torch.equal(kept[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize("method", ["pissa", "olora"])
def test_the_factors_are_pefts_own(method, load_small):
    ours, _ = add_adapter(load_small(), AdapterSection(method=method, rank=4, alpha=4), seed=0, jobs=1)
    config = LoraConfig(r=4, lora_alpha=4, target_modules="all-linear", init_lora_weights=method)
    theirs = get_peft_model(load_small(), config).state_dict()
    mine = ours.state_dict()
    factors = [name for name in theirs if ".lora_A." in name or ".lora_B." in name]
    assert factors and all(torch.equal(mine[name], theirs[name]) for name in factors)


@pytest.mark.parametrize("method", METHODS)
def test_trained_is_reloaded_is_exported(method, small_recipe, tmp_path):
    command = [sys.executable, "-m", "milora", "train", small_recipe, f"adapter.method={method}"]
    done = subprocess.run([*command, "--runs", str(tmp_path / "runs")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "runs").iterdir()
    run = open_run(path)
    before, after = json.loads((path / "training.json").read_text())["held_out_loss"]
    assert after != before
    base = logits_of(load_model(run.recipe.model))
    trained = logits_of(attach_adapter(load_model(run.recipe.model), run.adapter))
    assert drift(trained, base) > 1e-4, "training changed nothing: this test shows nothing"
    merged = AutoModelForCausalLM.from_pretrained(export_run(run, "merged", tmp_path / "merged"), dtype=torch.float32)
    assert drift(logits_of(merged), trained) < 1e-5
    if run.recipe.adapter.has_initial_factors:
        portable = attach_adapter(load_model(run.recipe.model), export_run(run, "lora", tmp_path / "lora"))
        assert drift(logits_of(portable), trained) < 1e-5
        residual = export_run(run, "residual", tmp_path / "residual")
        pair = attach_adapter(AutoModelForCausalLM.from_pretrained(residual, dtype=torch.float32), residual / "adapter")
        assert drift(logits_of(pair), trained) < 1e-5


def test_olora_certifies_its_base(load_small, tmp_path):
    model, _ = add_adapter(load_small(), AdapterSection(method="olora", rank=4), seed=0, jobs=1)
    model.save_pretrained(tmp_path)
    wrong = load_small()
    with torch.no_grad():
        for part in wrong.model.layers:
            part.mlp.up_proj.weight.add_(torch.randn_like(part.mlp.up_proj.weight) * 0.1)
    with pytest.raises(MiloraError, match="not of this base"):
        load_milora(wrong, tmp_path)
    load_milora(load_small(), tmp_path)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
def test_olora_refuses_transposed_weights():
    with pytest.raises(MiloraError, match="Conv1D"):
        add_adapter(make_gpt2(), AdapterSection(method="olora", rank=4), seed=0, jobs=1)
