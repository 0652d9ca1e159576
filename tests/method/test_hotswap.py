"""PEFT's hot-swapping of an ordinary LoRA into a MiLoRA adapter."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter

from milora import MiloraError
from tests.conftest import add_milora, drift, logits_of, make_llama, train_briefly


def write_lora(folder, rank):
    torch.manual_seed(1)
    model = get_peft_model(make_llama(), LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear"))
    train_briefly(model, steps=5).save_pretrained(folder)


@pytest.mark.parametrize("rank", [1, 4, 8])
def test_one_of_at_most_the_same_rank_swaps_in_exactly(rank, tmp_path):
    write_lora(tmp_path, rank)
    model = train_briefly(add_milora(make_llama(), lora_alpha=8))
    hotswap_adapter(model, str(tmp_path), "default")
    assert drift(logits_of(model), logits_of(PeftModel.from_pretrained(make_llama(), tmp_path))) <= 1e-6


def test_one_of_a_larger_rank_raises(tmp_path):
    write_lora(tmp_path, 16)
    model = add_milora(make_llama(), lora_alpha=8)
    hotswap_adapter(model, str(tmp_path), "default")
    with pytest.raises(MiloraError, match="rank 16 were loaded over a MiLoRA adapter of rank 8"):
        logits_of(model)
