"""Forgetting is a task like any other: checked against a dense float64 computation, and read from its files."""

import json
import math
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from milora.evaluation.evaluate import evaluate
from milora.evaluation.forgetting import make_blocks
from milora.evaluation.target import resolve_target
from milora.models.base import load_tokenizer
from milora.run.sections import EvaluationSection, ModelSection
from tests.conftest import train_briefly

TEXT = "The ends of a spectrum are not alike: the first components are large, the last ones small. " * 4


@pytest.fixture(scope="module")
def adapter(small_model, tmp_path_factory):
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("forgetting") / "lora"
    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32),
        LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    train_briefly(model).save_pretrained(folder)
    return folder, model


def _section(text="sampled"):
    settings = {"tasks": ["forgetting"], "forgetting": {"text": text, "block_count": 2, "block_length": 12}}
    return EvaluationSection.model_validate(settings)


@pytest.mark.slow
def test_forgetting_before_and_after_is_that_of_a_dense_computation(adapter, small_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    folder, model = adapter
    base, trained = evaluate(resolve_target(str(folder), "float32"), _section("text.txt"), baseline=True)
    tokens = load_tokenizer(ModelSection(name=str(small_model)))(TEXT)["input_ids"][:24]
    blocks = torch.tensor(tokens).view(2, 12)
    tuned = model.double()
    with torch.no_grad():
        q = tuned(blocks).logits.log_softmax(-1)
        with tuned.disable_adapter():
            p = tuned(blocks).logits.log_softmax(-1)
    loss = [-x[:, :-1].gather(2, blocks[:, 1:, None]).mean().item() for x in (p, q)]
    entropy, cross = (-(p.exp() * x).sum(-1).mean().item() for x in (p, q))
    assert trained.headline.value == pytest.approx(cross, rel=1e-5) and cross > entropy
    assert base.headline.value == pytest.approx(entropy, rel=1e-5)
    assert trained.metrics["floor"].value == pytest.approx(entropy, rel=1e-5)
    for scores, expected in zip((base, trained), loss, strict=True):
        assert scores.metrics["perplexity"].value == pytest.approx(math.exp(expected), rel=1e-5)
    assert (base.unit, base.metrics["perplexity"].unit) == ("nats", "number")


@pytest.mark.slow
def test_forgetting_is_a_task_of_the_command_line(adapter, call):
    folder, _ = adapter
    options = ["--tasks", "forgetting", "--dtype", "float32", "--baseline"]
    keys = ["evaluation.forgetting.block_count=1", "evaluation.forgetting.block_length=8"]
    code, out, error = call("eval", folder, *options, *keys)
    assert code == 0, error
    lines = [line.split()[0] for line in out.splitlines()[1:5]]
    assert lines == ["forgetting", "floor", "perplexity", "In"]
    base, trained = (json.loads(next(call.folder.rglob(f"{who}/forgetting/*/scores.json")).read_text())
                     for who in ("base", "trained"))  # fmt: skip
    # The base is asked about the text that it generated for the trained model, and forgot nothing of it.
    assert base["metrics"]["cross_entropy"]["value"] == pytest.approx(trained["metrics"]["floor"]["value"], rel=1e-6)


def test_what_the_base_generated_is_read_again_and_another_base_generates_its_own(adapter, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    target = resolve_target(str(adapter[0]), "float32")
    base, tokenizer = target.base.load(), target.load_tokenizer()
    asked = _section().forgetting
    first = make_blocks(asked, target.base, base, tokenizer)
    assert first.shape == (2, 12) and len(first.unique()) > 4
    base.generate = None  # not to be asked again
    assert torch.equal(make_blocks(asked, target.base, base, tokenizer), first)
    other = replace(target.base, model=target.base.model.model_copy(update={"dtype": "bfloat16"}))
    for changed, origin in ((asked, other), (asked.model_copy(update={"block_length": 13}), target.base)):
        with pytest.raises(TypeError):
            make_blocks(changed, origin, base, tokenizer)


def test_the_former_setting_is_not_ignored(call):
    code, _, error = call("show", "quickstart", "evaluation.forgetting.blocks=2")
    assert code == 2 and "evaluation.forgetting.blocks is now called evaluation.forgetting.block_count" in error
