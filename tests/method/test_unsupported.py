"""Layers that cannot start from their components: all in one message, or ordinary LoRA.

Broken by: a message that names only the first, a line that does not help, or an ordinary layer that is lost on the way
from the start to the export.
"""

import dataclasses
import json
import re

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import milora
from tests.architectures import ARCHITECTURES, answer
from tests.conftest import drift, logits_of, make_llama, train_briefly
from tests.test_readme import CODE

pytestmark = pytest.mark.filterwarnings(
    *("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
    "ignore:The following .*_pattern keys did not match",  # PEFT compares them with modules alone, and uses them
)

# Each name that does not fit at rank 8, and the highest rank that does.
NARROW = {
    "gemma3n_text": {
        **dict.fromkeys(("correction_coefs", "prediction_coefs", "modality_router"), 4),
        **dict.fromkeys(("linear_left", "linear_right"), 4),
    },
    "qwen3_5_text": {"in_proj_b": 4, "in_proj_a": 4},
    "qwen2_moe": {"shared_expert_gate": 1},
    "mixtral": {"gate.weight": 4},
    "deepseek_v3": {"gate.weight": 4},
}

EVERYTHING = LoraConfig(r=4, target_modules="all-linear")


def add_lora(name: str, **options) -> PeftModel:
    config = {"r": 8, "lora_alpha": 8, "target_modules": "all-linear"} | options
    return get_peft_model(ARCHITECTURES[name].build(), LoraConfig(**config))


@pytest.mark.parametrize("name", NARROW)
def test_all_are_listed_with_the_line_that_helps(name):
    with pytest.raises(milora.MiloraError) as refused:
        milora.initialize_lora_milora_weights(add_lora(name))
    for layer, rank in NARROW[name].items():
        assert re.search(rf"\d × {layer}: rank 8 is above {rank}, the largest of a \(", refused.value.message)
    ranks = json.loads(re.search(r"rank_pattern=(\{.*?\})", refused.value.hint).group(1))
    assert ranks == NARROW[name]
    report = milora.initialize_lora_milora_weights(add_lora(name, rank_pattern=ranks))
    assert {layer.rank for layer in report.layers.values()} >= {8, *ranks.values()}
    assert not any("ordinary" in sentence for sentence in report.warnings)


def test_other_kinds_of_layers_are_listed_too():
    """An embedding beside narrow layers: both lines are there, and both help together."""
    targets = ["q_proj", "modality_router", "embed_tokens", "embed_tokens_per_layer"]
    with pytest.raises(milora.MiloraError, match="lora.Embedding is not a linear layer") as refused:
        milora.initialize_lora_milora_weights(add_lora("gemma3n_text", target_modules=targets))
    assert refused.value.message.startswith("4 of 6 layers cannot start from their components")
    excluded = json.loads(re.search(r"exclude_modules=(\[.*?\])", refused.value.hint).group(1))
    assert excluded == ["embed_tokens", "embed_tokens_per_layer"]
    ranks = json.loads(re.search(r"rank_pattern=(\{.*?\})", refused.value.hint).group(1))
    model = add_lora("gemma3n_text", target_modules=targets, exclude_modules=excluded, rank_pattern=ranks)
    assert len(milora.initialize_lora_milora_weights(model).layers) == 4


def test_a_name_that_also_fits_is_told_apart():
    """Two layers of one name, one of which fits: the line names the other with as much of its path as needed."""
    model = make_llama()
    model.model.layers[1].self_attn.q_proj = torch.nn.Linear(64, 6, bias=False)
    wrapped = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj"]))
    with pytest.raises(milora.MiloraError, match=r'rank_pattern=\{"1.self_attn.q_proj": 6\}'):
        milora.initialize_lora_milora_weights(wrapped)


def test_nothing_fits():
    for options in ({}, {"unsupported": "lora"}):
        with pytest.raises(milora.MiloraError, match="1 of 1 layers cannot start"):
            milora.initialize_lora_milora_weights(
                get_peft_model(make_llama(), LoraConfig(target_modules=["embed_tokens"])), **options
            )


def test_an_unknown_word_is_refused():
    with pytest.raises(milora.MiloraError, match="unsupported='skip' is unknown"):
        milora.initialize_lora_milora_weights(add_lora("llama"), unsupported="skip")


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}], ids=["", "rsLoRA"])
@pytest.mark.parametrize("name", NARROW)
def test_ordinary_layers_from_start_to_export(name, options, tmp_path):
    architecture = ARCHITECTURES[name]
    base = answer(architecture.build(), architecture)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", **options)
    model = get_peft_model(architecture.build(), config)
    ranks = dict(config.rank_pattern)  # PEFT has written the ranks of experts into it
    report = milora.initialize_lora_milora_weights(model, unsupported="lora")
    sentence = next(sentence for sentence in report.warnings if "ordinary LoRA, not MiLoRA" in sentence)
    assert all(f" × {layer}" in sentence for layer in NARROW[name])
    assert config.rank_pattern == ranks
    assert torch.equal(answer(model, architecture), base)
    lowered = [module for path, module in model.named_modules() if hasattr(module, "lora_A") and "default" in module.r]
    scalings = {module.scaling["default"] for module in lowered if module.r["default"] < 8}
    assert scalings == {16 / 8**0.5 if options else 2.0}

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(3):
        model.train()(**architecture.batch()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = answer(model, architecture)
    ordinary = [module for module in lowered if module.r["default"] < 8]
    assert any(module.lora_B["default"].weight.abs().sum() > 0 for module in ordinary)
    model.save_pretrained(tmp_path / "raw")
    loaded = milora.load_milora(architecture.build(), tmp_path / "raw")
    assert torch.equal(answer(loaded, architecture), trained)
    milora.save_milora_as_lora(tmp_path / "lora", loaded)
    plain = PeftModel.from_pretrained(architecture.build(), tmp_path / "lora")
    assert drift(answer(plain, architecture), trained) < 1e-5
    with model.disable_adapter():
        assert torch.equal(answer(model, architecture), base)
    assert drift(answer(model.merge_and_unload(), architecture), trained) < 1e-5


def test_an_ordinary_embedding_is_exported(tmp_path):
    model = get_peft_model(make_llama(), LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj", "embed_tokens"]))
    milora.initialize_lora_milora_weights(model, unsupported="lora")
    torch.nn.init.normal_(model.base_model.model.model.embed_tokens.lora_embedding_B["default"], std=0.1)
    trained = logits_of(train_briefly(model))
    model.save_pretrained(tmp_path / "raw")
    assert torch.equal(logits_of(milora.load_milora(make_llama(), tmp_path / "raw")), trained)
    milora.save_milora_as_lora(tmp_path / "lora", model)
    assert drift(logits_of(PeftModel.from_pretrained(make_llama(), tmp_path / "lora")), trained) < 1e-5
    with pytest.raises(milora.MiloraError, match="embed_tokens is ordinary LoRA of a higher rank"):
        milora.save_milora_as_lora(tmp_path / "small", model, rank=2)


def test_the_reference_of_preference_trainers():
    """The ordinary layers of the reference get the lowered rank, and TRL copies their factors."""
    architecture = ARCHITECTURES["qwen2_moe"]
    model = add_lora("qwen2_moe")
    milora.initialize_lora_milora_weights(model, unsupported="lora")
    before = answer(model, architecture)
    model.add_adapter("ref", model.peft_config["default"])
    for name, parameter in model.named_parameters():
        if ".default." in name:
            model.get_parameter(name.replace(".default.", ".ref.")).data.copy_(parameter.data)
    model.set_adapter("ref")
    assert torch.equal(answer(model, architecture), before)


def test_a_wrong_base_is_refused(tmp_path):
    """Its shared experts have another width."""
    model = add_lora("qwen2_moe")
    milora.initialize_lora_milora_weights(model, unsupported="lora")
    model.save_pretrained(tmp_path)
    other = dataclasses.replace(ARCHITECTURES["qwen2_moe"])
    other = dataclasses.replace(other, changes=other.changes | {"shared_expert_intermediate_size": 4})
    with pytest.raises(milora.MiloraError, match="shared_expert.*do not fit this base model"):
        milora.load_milora(other.build(), tmp_path)


@pytest.mark.parametrize("name", ["qwen3_5_text", "gemma3n_text", "qwen2_moe"])
def test_the_code_of_the_readme(name, tmp_path, monkeypatch):
    """Its own lines, at its own rank, on models that have layers which are narrower."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 96}
    architecture = dataclasses.replace(ARCHITECTURES[name], changes=ARCHITECTURES[name].changes | sizes)
    if name == "gemma3n_text":
        architecture.changes["intermediate_size"] = [96, 96]
    architecture.build().save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(CODE.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(tmp_path / "model")), names)
    assert torch.equal(answer(names["model"], architecture), answer(architecture.build(), architecture))
    plain = PeftModel.from_pretrained(architecture.build(), "out")
    assert torch.equal(answer(plain, architecture), answer(architecture.build(), architecture))


@pytest.mark.parametrize(
    ("name", "targets", "expected"),
    [
        ("gpt_oss", "all-linear", ["experts.gate_up_proj", "experts.down_proj"]),
        ("qwen2_moe", ["q_proj"], ["experts.gate_up_proj", "experts.down_proj"]),
        ("mixtral", ["q_proj", "w1", "w3"], None),  # most of it
        ("llama", ["q_proj"], None),  # no experts
        ("internvl", ["q_proj"], None),  # 3-D parameters that are not experts
    ],
)
def test_the_share_of_the_weights(name, targets, expected):
    """Where experts, most of a mixture, are left out, the warning says how to add them, and its line is right."""
    config = LoraConfig(r=4, target_modules=targets)
    model = get_peft_model(ARCHITECTURES[name].build(), config)
    report = milora.initialize_lora_milora_weights(model, unsupported="lora")
    if name != "mixtral":
        assert report.share <= 0.5
    sentences = [sentence for sentence in report.warnings if "of the weights" in sentence]
    assert bool(sentences) == bool(expected)
    if expected:
        assert f"{report.share:.0%} of the weights" in sentences[0]
        line = json.loads(re.search(r"target_parameters=(\[.*?\])", sentences[0]).group(1))
        assert line == expected
        again = get_peft_model(
            ARCHITECTURES[name].build(), LoraConfig(r=4, target_modules=targets, target_parameters=line)
        )
        report = milora.initialize_lora_milora_weights(again, unsupported="lora")
        assert report.share > 0.5 and not any("of the weights" in sentence for sentence in report.warnings)


def test_the_share_is_counted_without_embeddings():
    """Of each layer: q, k, v and o, and three of the feed-forward network. The head is not tied here."""
    model = get_peft_model(make_llama(), LoraConfig(r=4, target_modules=["q_proj"]))
    attention, rest = 64 * 64, 64 * 64 + 2 * 32 * 64 + 3 * 64 * 96
    assert milora.initialize_lora_milora_weights(model).share == attention / (attention + rest)
    assert milora.initialize_lora_milora_weights(get_peft_model(make_llama(tied=True), EVERYTHING)).share == 1
