"""The callback of a transformers Trainer, called as it calls it."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Trainer, TrainingArguments

import milora
from milora import MiloraError
from tests.conftest import add_milora, drift, logits_of, make_llama

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*")


def _train(model, folder, callback, **options):
    rows = [{"input_ids": [index, 1, 2], "labels": [index, 1, 2]} for index in range(8)]
    arguments = TrainingArguments(
        str(folder), max_steps=3, save_steps=1, per_device_train_batch_size=2, report_to="none", disable_tqdm=True,
        use_cpu=True, learning_rate=1e-2, **options,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=rows, callbacks=[callback]).train()


def _written(folder):
    return sorted(path.name for path in folder.glob("lora-*"))


@pytest.mark.parametrize(("limit", "kept"), [(None, ["1", "2", "3"]), (1, ["3"]), (2, ["2", "3"])])
def test_the_portable_loras_are_those_of_the_checkpoints(tmp_path, limit, kept):
    (tmp_path / "lora-notes").mkdir()
    model = add_milora(make_llama(), r=4)
    _train(model, tmp_path, milora.MiloraCallback(), save_total_limit=limit)
    assert _written(tmp_path) == [*(f"lora-{step}" for step in kept), "lora-notes"]
    portable = PeftModel.from_pretrained(make_llama(), tmp_path / "lora-3")
    assert drift(logits_of(portable), logits_of(model)) < 1e-5


def test_another_adapter(tmp_path):
    model = get_peft_model(make_llama(), LoraConfig(r=4, target_modules=["q_proj"]), adapter_name="mine")
    milora.initialize_lora_milora_weights(model, adapter_name="mine")
    _train(model, tmp_path, milora.MiloraCallback("mine"))
    assert _written(tmp_path) == ["lora-1", "lora-2", "lora-3"]


@pytest.mark.parametrize("name", ["default", "other"])
def test_an_adapter_that_cannot_be_exported_stops_before_the_first_step(tmp_path, name):
    model = get_peft_model(make_llama(), LoraConfig(r=4, target_modules=["q_proj"]))
    before = logits_of(model)
    with pytest.raises(MiloraError, match=f"adapter '{name}' was not initialized by milora"):
        _train(model, tmp_path, milora.MiloraCallback(adapter_name=name))
    assert torch.equal(logits_of(model), before) and not list(tmp_path.glob("checkpoint-*"))
