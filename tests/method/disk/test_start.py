"""`milora init`: a checkpoint on disk, shard by shard, against the same initialization of the loaded model."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import milora
from tests.conftest import drift, logits_of, make_gpt2, make_llama, make_qwen

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

ADAPTER = "adapter_model.safetensors"


MODELS = {
    "Conv1D, tied": make_gpt2,
    "biases": make_qwen,
    "bf16": lambda: make_llama(torch.bfloat16),
    "float64": lambda: make_llama(torch.float64),
    "tied": lambda: make_llama(tied=True),
}


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def checkpoint(request, tmp_path):
    """A checkpoint in one file, and in several: 40 kB is the size of two or three matrices."""
    request.param().save_pretrained(tmp_path / "single")
    request.param().save_pretrained(tmp_path / "sharded", max_shard_size="40kB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 3
    return tmp_path


def _load(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", **options)


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["single", "sharded"])
@pytest.mark.parametrize("components", ["minor", "principal"])
def test_intact_writes_the_adapter_of_the_loaded_model(checkpoint, storage, components, call, tmp_path):
    options = ("--rank", 4, "--alpha", 8, "--components", components, "--jobs", 1)
    code, out, err = call("init", checkpoint / storage, *options, "-o", tmp_path / "out")
    assert (code, out.strip()) == (0, str(tmp_path / "out")), err

    model = get_peft_model(
        _load(checkpoint / storage),
        LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    milora.initialize_lora_milora_weights(model, components=components)
    model.save_pretrained(tmp_path / "expected")
    written, expected = (load_file(tmp_path / folder / ADAPTER) for folder in ("out", "expected"))
    assert written.keys() == expected.keys()
    for name, factor in expected.items():
        assert written[name].dtype == factor.dtype and torch.equal(written[name], factor)
    configs = [json.loads((tmp_path / folder / "adapter_config.json").read_text()) for folder in ("out", "expected")]
    for config in configs:
        config["target_modules"] = set(config["target_modules"])
    assert configs[0] == configs[1]
    assert configs[0]["base_model_name_or_path"] == str(checkpoint / storage)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        *(ADAPTER, "adapter_config.json", "initialization.json", ".lock")
    }
    base = _load(checkpoint / storage)
    expected_logits = logits_of(base)
    assert torch.equal(logits_of(milora.load_milora(base, tmp_path / "out", is_trainable=True)), expected_logits)


@pytest.mark.parametrize("storage", ["single", "sharded"])
def test_residual_changes_only_the_targets(checkpoint, storage, call, tmp_path):
    (checkpoint / storage / "pytorch_model.bin").write_bytes(b"a pickle")
    (checkpoint / storage / "modeling.py").write_text("code")
    (checkpoint / storage / "tokenizer.json").write_text("{}")
    code, _, err = call("init", checkpoint / storage, "--rank", 4, "--form", "residual", "-o", tmp_path / "out")
    assert code == 0, err

    model = get_peft_model(_load(checkpoint / storage), LoraConfig(r=4, lora_alpha=4, target_modules="all-linear"))
    report = milora.initialize_lora_milora_weights(model, form="residual")
    stored = {name.replace(".base_layer", ""): value for name, value in model.get_base_model().state_dict().items()}
    changed = 0
    for shard in (checkpoint / storage).glob("*.safetensors"):
        original, written = load_file(shard), load_file(tmp_path / "out" / shard.name)
        assert shard.stat().st_size == (tmp_path / "out" / shard.name).stat().st_size
        assert original.keys() == written.keys()
        for name, value in written.items():
            assert value.dtype == original[name].dtype and torch.equal(value, stored[name])
            changed += not torch.equal(value, original[name])
    assert changed == len(report.layers)
    record = json.loads((tmp_path / "out" / "initialization.json").read_text())
    for name, layer in report.layers.items():
        assert record["layers"][name]["rounding_error"] == layer.rounding_error
        assert record["layers"][name]["band"] == list(layer.band)
    bf16 = stored[next(name for name in stored if name.endswith("weight"))].dtype == torch.bfloat16
    assert ("warning: rounding" in err) == bf16
    names = {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert names - {"model.safetensors.index.json"} == {
        *(shard.name for shard in (checkpoint / storage).glob("*.safetensors")),
        *("config.json", "generation_config.json", "tokenizer.json", "initialization.json", ".lock"),
        *(f"adapter/{ADAPTER}", "adapter/adapter_config.json"),
    }
    expected = logits_of(_load(checkpoint / storage))
    pair = PeftModel.from_pretrained(_load(tmp_path / "out"), tmp_path / "out" / "adapter")
    assert drift(logits_of(pair), expected) < (0.05 if bf16 else 1e-5)


def test_a_checkpoint_without_the_prefix(call, tmp_path):
    """Its names are those of GPT-2 on the hub: h.0.attn.c_attn.weight."""
    make_gpt2().transformer.save_pretrained(tmp_path / "model")
    assert "h.0.attn.c_attn.weight" in load_file(tmp_path / "model" / "model.safetensors")
    code, _, err = call("init", tmp_path / "model", "--rank", 4, "-o", tmp_path / "out")
    assert code == 0, err
    milora.load_milora(_load(tmp_path / "model"), tmp_path / "out")


def test_a_tied_target_is_read_under_its_other_name(call, tmp_path):
    make_llama(tied=True).save_pretrained(tmp_path / "model")
    options = ("init", tmp_path / "model", "--rank", 4, "--targets", "lm_head,q_proj")
    code, _, err = call(*options, "-o", tmp_path / "out")
    assert code == 0, err
    base = _load(tmp_path / "model")
    expected = logits_of(base)
    assert torch.equal(logits_of(milora.load_milora(base, tmp_path / "out")), expected)
    code, _, err = call(*options, "--form", "residual", "-o", tmp_path / "other")
    assert code == 2 and "the weight is tied to another layer's" in err


def test_a_finished_output_is_kept(call, tmp_path):
    make_llama().save_pretrained(tmp_path / "model")
    options = ("init", tmp_path / "model", "--targets", "q_proj", "-o", tmp_path / "out")
    assert call(*options, "--rank", 4)[0] == 0
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir() if file.name != ".lock"}
    assert call(*options, "--rank", 4)[0] == 0
    assert {file: file.stat().st_mtime_ns for file in before} == before
    code, _, err = call(*options, "--rank", 8)
    assert code == 2 and "was made with rank=4, not 8" in err
    code, _, err = call(*options, "--rank", 4, "--form", "residual")
    assert code == 2 and "was made with form='intact', not 'residual'" in err
    make_llama(tied=True).save_pretrained(tmp_path / "model")
    code, _, err = call(*options, "--rank", 4)
    assert code == 2 and "was made with weights=" in err


def test_unfinished_files_of_other_options_are_discarded(call, tmp_path):
    """Broken by: shards or factors of other options or of replaced weights that count as finished."""
    make_llama().save_pretrained(tmp_path / "model", max_shard_size="40kB")
    options = ("--form", "residual", "-o", tmp_path / "out")
    assert call("init", tmp_path / "model", "--rank", 4, *options)[0] == 0
    begun = tmp_path / "out" / ".unfinished-0123456789ab" / "whole"
    begun.mkdir(parents=True)
    for file in [*(tmp_path / "out").glob("*.safetensors"), tmp_path / "out" / "adapter"]:
        file.replace(begun / file.name)
    for file in (tmp_path / "out").glob("*.json"):
        file.unlink()
    assert call("init", tmp_path / "model", "--rank", 8, *options)[0] == 0
    model = PeftModel.from_pretrained(_load(tmp_path / "out"), tmp_path / "out" / "adapter")
    assert drift(logits_of(model), logits_of(_load(tmp_path / "model"))) < 1e-5
    assert not list((tmp_path / "out").glob(".unfinished-*"))


def test_a_hub_model_is_read_from_its_snapshot(call, tmp_path, monkeypatch):
    """Broken by: a name on the hub that is read as a folder, or a folder that is written instead of that name."""
    cache = tmp_path / "hub"
    repository = cache / "models--someone--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    make_qwen().save_pretrained(repository / "snapshots" / ("0" * 40), max_shard_size="40kB")
    for module in ("huggingface_hub.constants", "transformers.utils.hub"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(cache), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, _, err = call("init", "someone/model", "--rank", 4, "-o", tmp_path / "out")
    assert code == 0, err
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "someone/model"


@pytest.mark.parametrize(
    ("flags", "config", "options"),
    [
        (("--rslora", "--alpha", 6), {"use_rslora": True, "lora_alpha": 6}, {}),
        (("--components", "random", "--seed", 3), {"lora_alpha": 4}, {"components": "random", "seed": 3}),
        (("--weighting", "orthonormal"), {"lora_alpha": 4}, {"weighting": "orthonormal"}),
    ],
    ids=["rslora", "seed", "weighting"],
)
@pytest.mark.parametrize("form", ["intact", "residual"])
def test_the_options_are_those_of_recipes(flags, config, options, form, call, tmp_path):
    make_llama().save_pretrained(tmp_path / "model")
    init = ("init", tmp_path / "model", "--rank", 4, "--targets", "v_proj", "--form", form)
    code, _, err = call(*init, *flags, "-o", tmp_path / "out")
    assert code == 0, err
    model = get_peft_model(_load(tmp_path / "model"), LoraConfig(r=4, target_modules=["v_proj"], **config))
    milora.initialize_lora_milora_weights(model, **options)
    folder = tmp_path / "out" / ("" if form == "intact" else "adapter")
    written, expected = load_file(folder / ADAPTER), get_peft_model_state_dict(model)
    for name in written.keys() & {name for name in expected if ".lora_A." in name or ".lora_B." in name}:
        assert torch.equal(written[name], expected[name])
    saved = LoraConfig.from_pretrained(folder)
    assert (saved.use_rslora, saved.lora_alpha) == (config.get("use_rslora", False), config["lora_alpha"])
    code, _, err = call(*init, "-o", tmp_path / "out")
    assert code == 2 and "was made with" in err


def test_a_revision_is_read_and_written(call, tmp_path, monkeypatch):
    """Broken by: another revision's weights, or an adapter that does not name the one that it was made from."""
    repository = tmp_path / "hub" / "models--someone--model"
    (repository / "refs").mkdir(parents=True)
    for name, digit, make in (("main", "0", make_qwen), ("v2", "1", make_llama)):
        (repository / "refs" / name).write_text(digit * 40)
        make().save_pretrained(repository / "snapshots" / (digit * 40))
    for module in ("huggingface_hub.constants", "transformers.utils.hub"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    options = ("init", "someone/model", "--rank", 4, "--targets", "o_proj", "--revision", "v2")
    code, _, err = call(*options, "-o", tmp_path / "out")
    assert code == 0, err
    assert LoraConfig.from_pretrained(tmp_path / "out").revision == "v2"
    model = milora.load_milora(make_llama(), tmp_path / "out")
    assert torch.equal(logits_of(model), logits_of(make_llama()))
    assert call(*options, "--form", "residual", "-o", tmp_path / "pair")[0] == 0
    assert (
        call("export", tmp_path / "pair" / "adapter", "--initial", tmp_path / "pair", "-o", tmp_path / "lora")[0] == 0
    )
    assert LoraConfig.from_pretrained(tmp_path / "lora").revision == "v2"
