"""An adapter is loaded onto the weights that it was made from, bit for bit where that can be known.

Broken by: a tolerance where equality can be proven, a digest that is not saved or not compared, a digest of the
loaded base in place of the recorded one.
"""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import milora
from milora import MiloraError, MiloraWarning
from tests.conftest import add_milora, logits_of, make_gpt2, make_llama, make_qwen, train_briefly

TARGETS = ["q_proj", "down_proj"]


def _save(folder, dtype=torch.float32, base=None, **options):
    model = add_milora(base or make_llama(dtype), r=4, **{"target_modules": TARGETS, **options})
    model.save_pretrained(folder)
    return model


def _weight(base, name="down_proj"):
    layer = base.model.layers[1]
    return layer.mlp.down_proj.weight if name == "down_proj" else layer.self_attn.q_proj.weight


CHANGES = {
    "one bit": lambda weight: weight.view(-1)[:1].mul_(1 + 2**-23),
    "0.9 %": lambda weight: weight.mul_(1.009),
    "a row": lambda weight: weight[:1].neg_(),
    "its order": lambda weight: weight.copy_(weight.flip(0)),
    "signs": lambda weight: weight.neg_(),
    "a column": lambda weight: weight[:, :1].zero_(),
    "noise": lambda weight: weight.add_(1e-5),
    "pruning": lambda weight: weight.mul_(weight.abs() > 1e-4),
    "rounding": lambda weight: weight.copy_(weight.bfloat16()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("form", ["intact", "residual"])
def test_a_base_that_is_nearly_the_right_one_is_refused(tmp_path, change, form):
    _save(tmp_path, form=form)
    base = make_llama()
    with torch.no_grad():
        change(_weight(base))
    with pytest.raises(MiloraError, match=r"layers\.1\.mlp\.down_proj: .* not of this base model"):
        milora.load_milora(base, tmp_path)
    assert not any("lora" in name for name, _ in base.named_modules())


def test_layers_without_the_adapter_are_not_certified(tmp_path):
    _save(tmp_path)
    base = make_llama()
    torch.nn.init.normal_(base.model.layers[0].mlp.up_proj.weight)
    milora.load_milora(base, tmp_path)


@pytest.mark.parametrize(("made", "loaded"), [("bfloat16", "float32"), ("float16", "float32"), ("float32", "float64")])
def test_a_wider_dtype_is_proven(tmp_path, made, loaded):
    _save(tmp_path, getattr(torch, made))
    milora.load_milora(make_llama().to(getattr(torch, made)).to(getattr(torch, loaded)), tmp_path)
    base = make_llama().to(getattr(torch, made)).to(getattr(torch, loaded))
    with torch.no_grad():
        _weight(base).mul_(1.009)
    with pytest.raises(MiloraError, match="another, if only by a little"):
        milora.load_milora(base, tmp_path)


def test_a_narrower_dtype_that_loses_nothing_is_proven(tmp_path):
    _save(tmp_path, base=make_llama(torch.bfloat16).float())
    milora.load_milora(make_llama(torch.bfloat16), tmp_path)


@pytest.mark.parametrize(("made", "loaded"), [("float32", "bfloat16"), ("float32", "float16"), ("float16", "bfloat16")])
def test_what_cannot_be_proven_is_a_warning_that_says_so(tmp_path, made, loaded):
    _save(tmp_path, getattr(torch, made))
    base = make_llama().to(getattr(torch, made)).to(getattr(torch, loaded))
    with pytest.warns(MiloraWarning, match=rf"4 of 4 layers .* have {loaded} weights.* from {made} .* to 1 %"):
        milora.load_milora(base, tmp_path)


def test_an_adapter_without_a_record_is_checked_through_its_factors(tmp_path):
    _save(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    state = {name: tensor for name, tensor in load_file(file).items() if "initial_base" not in name}
    save_file(state, file, {"format": "pt"})
    with pytest.warns(MiloraWarning, match="from unknown ones"):
        model = milora.load_milora(make_llama(), tmp_path)
    model.save_pretrained(tmp_path)  # does not become a proof
    with pytest.warns(MiloraWarning, match="from unknown ones"):
        milora.load_milora(make_llama(), tmp_path)


def test_the_record_is_kept_when_an_adapter_is_saved_again(tmp_path):
    _save(tmp_path)
    with pytest.warns(MiloraWarning):
        milora.load_milora(make_llama(torch.bfloat16), tmp_path).save_pretrained(tmp_path / "again")
    milora.load_milora(make_llama(), tmp_path / "again")


def test_conv1d(tmp_path):
    _save(tmp_path, base=make_gpt2(), target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    base = make_gpt2()
    assert torch.equal(logits_of(milora.load_milora(base, tmp_path)), logits_of(make_gpt2()))
    other = make_gpt2()
    other.transformer.h[0].mlp.c_fc.weight.data.mul_(1.001)
    with pytest.raises(MiloraError, match="c_fc"):
        milora.load_milora(other, tmp_path)


def test_another_shape_is_named(tmp_path):
    _save(tmp_path)
    with pytest.raises(MiloraError, match=r"its factors fit a \(64, 64\) weight, and this one is \(48, 48\)"):
        milora.load_milora(make_qwen(), tmp_path)


def test_a_checkpoint_of_another_base_is_not_resumed(tmp_path):
    """A trainer loads it over a fresh adapter of the same shape."""
    _save(tmp_path)
    other = make_llama()
    with torch.no_grad():
        _weight(other, "q_proj").mul_(1.001)
    model = add_milora(other, r=4, target_modules=TARGETS)
    with pytest.raises(MiloraError, match=r"layers\.1\.self_attn\.q_proj: .* another base"):
        model.load_adapter(tmp_path, "default")
    same = add_milora(make_llama(), r=4, target_modules=TARGETS, components="principal")
    same.load_adapter(tmp_path, "default")
    assert torch.equal(logits_of(same), logits_of(make_llama()))


def test_loading_onto_a_model_in_training_changes_nothing_of_it(tmp_path):
    _save(tmp_path)
    host = get_peft_model(make_llama(), LoraConfig(r=4, target_modules=["v_proj"], lora_dropout=0.1)).train()
    before = {name: parameter.requires_grad for name, parameter in host.named_parameters()}
    loaded = milora.load_milora(host, tmp_path, adapter_name="milora")
    assert loaded is host and host.training and host.active_adapter == "default"
    after = {name: parameter.requires_grad for name, parameter in host.named_parameters()}
    trainable = {name for name, value in before.items() if value}
    assert trainable and {name for name, value in after.items() if value} == trainable


def test_loading_a_trainable_adapter_onto_a_model(tmp_path):
    _save(tmp_path)
    host = get_peft_model(make_llama(), LoraConfig(r=4, target_modules=["v_proj"]))
    milora.load_milora(host, tmp_path, adapter_name="milora", is_trainable=True)
    assert all(p.requires_grad for name, p in host.named_parameters() if "lora_" in name)
    host.set_adapter("milora")
    assert torch.equal(logits_of(host), logits_of(make_llama()))
    assert not torch.equal(logits_of(train_briefly(host)), logits_of(make_llama()))


def test_a_name_that_the_model_has_is_refused(tmp_path):
    model = _save(tmp_path)
    with pytest.raises(MiloraError, match="an adapter 'default' already"):
        milora.load_milora(model, tmp_path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("outputs/adaptor", r"no folder .*did you mean .*outputs/adapter\?"),
        ("./adapter", "no folder"),
        ("adapter", "no folder"),
        ("~/nothing/there", "no folder"),
        ("/nothing/there/at/all", "no folder"),
        ("a/b/c", "no folder"),
    ],
)
def test_a_mistyped_path_never_goes_to_the_hub(tmp_path, monkeypatch, path, message):
    (tmp_path / "outputs" / "adapter").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MiloraError, match=message):
        milora.load_milora(make_llama(), path)


def test_hub_arguments(tmp_path, monkeypatch):
    asked = {}
    _save(tmp_path / "inner")

    def download(name, **options):
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr("milora.method.loading.snapshot_download", download)
    milora.load_milora(make_llama(), "someone/adapter", revision="v1", subfolder="inner", token="secret")  # noqa: S106
    assert asked == {
        "name": "someone/adapter",
        "revision": "v1",
        "token": "secret",
        "allow_patterns": ["inner/adapter_*"],
    }
    with pytest.raises(MiloraError, match="local folder, which has none"):
        milora.load_milora(make_llama(), tmp_path / "inner", revision="v1")


def test_the_adapters_dtype_is_that_of_the_base_if_asked(tmp_path):
    _save(tmp_path, torch.bfloat16)
    for autocast, dtype in ((True, torch.float32), (False, torch.bfloat16)):
        model = milora.load_milora(make_llama(torch.bfloat16), tmp_path, autocast_adapter_dtype=autocast)
        assert {p.dtype for name, p in model.named_parameters() if "lora_" in name} == {dtype}
        assert torch.equal(logits_of(model), logits_of(make_llama(torch.bfloat16)))
