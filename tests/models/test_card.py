"""The README of an exported adapter, and the name of its base."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model

from milora.evaluation.target import resolve_target
from milora.method.errors import MiloraError
from milora.models.card import describe_lora, name_base, say_how_to_load
from milora.models.embedded import EMBEDDED, locate_embedded_model
from milora.run.directory import create_run, locate_export
from milora.run.recipe import load_recipe
from milora.run.sections import ModelSection
from milora.training.prepare import locate
from tests.conftest import make_llama


@pytest.fixture
def adapter(tmp_path):
    folder = tmp_path / "exported"
    get_peft_model(make_llama(), LoraConfig(r=3, target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(
        folder
    )
    return folder


def read_card(folder: Path):
    card = ModelCard.load(folder / "README.md")
    return card, json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]


def test_a_base_on_the_hub_is_named_where_peft_names_it(adapter):
    model = ModelSection(name="someone/model", revision="abc", quantization="nf4")
    describe_lora(adapter, model, "milora", 'mine: a "name"', pictures=False)
    card, base = read_card(adapter)
    assert card.data.base_model == base == "someone/model" and card.data.library_name == "peft"
    assert card.data.tags == ["base_model:adapter:someone/model", "lora", "transformers"]
    assert card.data.pipeline_tag == "text-generation" and card.data.license is None
    for said in ("rank 3", "the method milora", "quantized to nf4", "License: to be stated", '# mine: a "name"'):
        assert said in card.text
    assert "from_pretrained('someone/model', revision='abc')" in card.text


def test_a_folder_of_this_machine_is_named_as_one_and_without_its_path(adapter, small_model):
    describe_lora(adapter, ModelSection(name=str(small_model), dtype="float32"), "milora", "mine", pictures=False)
    card, base = read_card(adapter)
    assert base == f"local:{small_model.name}" and card.data.base_model is None
    assert "not on the hub" in card.text and "model.safetensors: sha256 " in card.text
    for file in ("README.md", "adapter_config.json"):
        assert str(small_model) not in (adapter / file).read_text()
    with pytest.raises(MiloraError, match="does not say where it is") as raised:
        resolve_target(str(adapter)).load()
    assert "base_model_name_or_path" in raised.value.hint


def test_the_embedded_model_is_named_and_not_its_cache(adapter):
    assert name_base(str(locate_embedded_model())) == name_base(EMBEDDED) == EMBEDDED
    describe_lora(adapter, ModelSection(name=EMBEDDED), "lora", "mine", pictures=False)
    card, base = read_card(adapter)
    assert base == EMBEDDED and card.data.base_model is None
    assert "SmolLM2-135M-Instruct.Q4_1.gguf (sha256 " in card.text and ".cache" not in card.text


def test_the_lines_of_the_readme_load_the_adapter(adapter, small_model, load_whole):
    get_peft_model(load_whole(), LoraConfig(r=3, target_modules=["q_proj"])).save_pretrained(adapter)
    lines = say_how_to_load(ModelSection(name=str(small_model)), "lora", str(adapter), pictures=False)
    names = {}
    exec(lines, names)
    assert isinstance(names["model"], PeftModel) and len(lines.splitlines()) == 3


def test_an_export_in_its_run_is_scored_on_the_runs_base(tmp_path, small_model):
    run = create_run(locate(load_recipe("quickstart", [f"model.name={small_model}"]), tmp_path))
    folder = locate_export(run.path, "lora")
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "local:model"}')
    assert resolve_target(str(folder)).model.name == str(small_model)
