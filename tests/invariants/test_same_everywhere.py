"""Invariants 2 and 3: trained = reloaded = exported = merged, and the base keeps its bits.

Broken by: a save without the initial factors, an export without −s·B₀A₀ or a scaling, a merge in low precision, an
unmerge that subtracts, a write to the base.
"""

import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import milora
from milora.method.export import save_residual_pair
from tests.conftest import add_milora, drift, logits_of, make_gpt2, make_qwen, some_tokens, train_briefly

VARIANTS = {
    "plain": {},
    "alpha": {"lora_alpha": 24},
    "rslora": {"use_rslora": True, "lora_alpha": 4},
    "patterns": {"rank_pattern": {"q_proj": 3, "down_proj": 12}, "alpha_pattern": {"v_proj": 40}},
    "dropout": {"dropout": 0.2},
    "orthonormal": {"weighting": "orthonormal"},
    "principal": {"components": "principal"},
}
# In bf16 a merged or residual weight is rounded, by 2⁻⁹ of each entry, and so are the logits.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


# In bfloat16, a few of them: a processor without its instructions takes half a minute for each.
DTYPES = [
    pytest.param(dtype, options, id=f"{name}-{dtype}")
    for name, options in VARIANTS.items()
    for dtype in TOLERANCE
    if dtype == torch.float32 or name in ("plain", "patterns")
]


@pytest.mark.parametrize("form", ["intact", "residual"])
@pytest.mark.parametrize(("dtype", "options"), DTYPES)
def test_every_output_gives_the_trained_logits(load_small, tmp_path, dtype, form, options):
    model = train_briefly(add_milora(load_small(dtype), form=form, **options))
    trained = logits_of(model)
    base_logits = logits_of(load_small(dtype))
    assert drift(trained, base_logits) > 5 * TOLERANCE[dtype], "training must have changed the model"

    model.save_pretrained(tmp_path / "saved")
    reloaded = milora.load_milora(load_small(dtype), tmp_path / "saved", form=form)
    assert torch.equal(logits_of(reloaded), trained)

    milora.save_milora_as_lora(tmp_path / "lora", model)
    plain = PeftModel.from_pretrained(load_small(dtype), tmp_path / "lora")
    assert drift(logits_of(plain), trained) < TOLERANCE[dtype]

    merged = reloaded.merge_and_unload(safe_merge=True)
    assert drift(logits_of(merged), trained) < TOLERANCE[dtype]


@pytest.mark.parametrize("make", [make_gpt2, make_qwen])
@pytest.mark.parametrize("form", ["intact", "residual"])
def test_conv1d_and_biases(tmp_path, make, form):
    targets = ["c_attn", "c_fc", "c_proj"] if make is make_gpt2 else "all-linear"
    options = {"target_modules": targets, "fan_in_fan_out": make is make_gpt2, "lora_alpha": 12}
    model = train_briefly(add_milora(make(), form=form, **options))
    trained = logits_of(model)
    assert drift(trained, logits_of(make())) > 1e-3
    milora.save_milora_as_lora(tmp_path, model)
    assert drift(logits_of(PeftModel.from_pretrained(make(), tmp_path)), trained) < 1e-5
    assert drift(logits_of(model.merge_and_unload()), trained) < 1e-5


@pytest.mark.slow
def test_export_needs_no_milora(small_model, load_whole, tmp_path):
    model = train_briefly(add_milora(load_whole(), use_rslora=True, rank_pattern={"q_proj": 3}))
    milora.save_milora_as_lora(tmp_path / "lora", model)
    torch.save(some_tokens(model), tmp_path / "tokens")
    script = f"""
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained({str(small_model)!r}, dtype=torch.float32)
model = PeftModel.from_pretrained(base, {str(tmp_path / "lora")!r}).eval()
with torch.no_grad():
    torch.save(model(torch.load({str(tmp_path / "tokens")!r})).logits, {str(tmp_path / "logits")!r})
assert not any(name.startswith("milora") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert drift(torch.load(tmp_path / "logits"), logits_of(model)) < 1e-5


def test_residual_pair_is_the_papers_form(load_small, tmp_path):
    model = train_briefly(add_milora(load_small(), form="residual", lora_alpha=16))
    trained = logits_of(model)
    save_residual_pair(tmp_path, model)
    base = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert drift(logits_of(base), trained) > 1e-4
    assert drift(logits_of(PeftModel.from_pretrained(base, tmp_path / "adapter")), trained) < 1e-5


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_base_keeps_its_bits(load_small, dtype, tmp_path):
    untouched = load_small(dtype).state_dict()
    model = train_briefly(add_milora(load_small(dtype)))
    milora.save_milora_as_lora(tmp_path, model)
    with model.disable_adapter():
        assert torch.equal(logits_of(model), logits_of(load_small(dtype)))
    before = logits_of(model)
    model.merge_adapter()
    model.unmerge_adapter()
    assert torch.equal(logits_of(model), before)
    base = model.unload()
    assert all(torch.equal(base.state_dict()[name], tensor) for name, tensor in untouched.items())


def test_recompression_states_its_error(load_small, tmp_path):
    model = train_briefly(add_milora(load_small(), r=8))
    exact = milora.save_milora_as_lora(tmp_path / "exact", model)
    small = milora.save_milora_as_lora(tmp_path / "small", model, rank=5)
    assert (exact.rank, exact.largest_error, small.rank) == (16, 0.0, 5)
    deltas = {}
    for name in ("exact", "small"):
        plain = PeftModel.from_pretrained(load_small(), tmp_path / name)
        deltas[name] = {n: m.get_delta_weight("default") for n, m in plain.named_modules() if hasattr(m, "lora_A")}
    for layer, error in small.errors.items():
        assert drift(deltas["small"][layer], deltas["exact"][layer]) == pytest.approx(error, rel=1e-3)
        singular = torch.linalg.svdvals(deltas["exact"][layer].double())
        assert error == pytest.approx((singular[5:].norm() / singular.norm()).item(), rel=1e-3), "Eckart–Young"
