"""MiLoRA under TRL's SFTTrainer, as in a user's own script: checkpoints, resuming, and the callback's export."""

import datasets
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

import milora
from tests.conftest import drift, logits_of

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*pin_memory.*")


def _trainer(small_model, load_small, folder, **arguments):
    model = get_peft_model(load_small(), LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1))
    milora.initialize_lora_milora_weights(model)
    rows = datasets.Dataset.from_list([{"prompt": f"{i} and {i}", "completion": f" make {2 * i}"} for i in range(16)])
    config = SFTConfig(
        str(folder), max_steps=4, save_steps=2, per_device_train_batch_size=4, learning_rate=1e-3, report_to="none",
        disable_tqdm=True, logging_steps=1, activation_checkpointing=False, bf16=False, **arguments,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(small_model)
    return SFTTrainer(
        model, args=config, train_dataset=rows, processing_class=tokenizer, callbacks=[milora.MiloraCallback()]
    )


@pytest.mark.slow
def test_sft_trainer_trains_checkpoints_and_resumes(small_model, load_small, tmp_path):
    whole = _trainer(small_model, load_small, tmp_path / "whole")
    whole.train()
    resumed = _trainer(small_model, load_small, tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert torch.equal(logits_of(resumed.model), logits_of(whole.model))
    assert drift(logits_of(whole.model), logits_of(load_small())) > 1e-4

    checkpoint = tmp_path / "whole" / "checkpoint-4"
    assert torch.equal(logits_of(milora.load_milora(load_small(), checkpoint)), logits_of(whole.model))
    portable = PeftModel.from_pretrained(load_small(), tmp_path / "whole" / "lora-4")
    assert drift(logits_of(portable), logits_of(whole.model)) < 1e-5


def test_only_the_factors_train(load_small):
    model = get_peft_model(load_small(), LoraConfig(r=4, target_modules="all-linear"))
    plain = model.get_nb_trainable_parameters()[0]
    milora.initialize_lora_milora_weights(model)
    assert model.get_nb_trainable_parameters()[0] == plain
