"""TRL's preference and RL trainers on a MiLoRA model as it is: fresh, or trained by SFT before.

They add a reference adapter from the policy's config and copy its parameters.

Broken by: A₀ or B₀ that the reference lacks, a config that plain PEFT refuses, a reference that shares tensors with the
policy.
"""

import datasets
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RLOOConfig,
    RLOOTrainer,
)

import milora
from tests.conftest import drift, logits_of, make_llama, train_briefly

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*pin_memory.*")]

LN_2 = 0.6931472


@pytest.fixture(scope="module")
def tokenizer():
    words = Tokenizer(WordLevel({f"w{index}": index for index in range(200)}, unk_token="w0"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w199", pad_token="w198", unk_token="w0")


def _words(*numbers):
    return " " + " ".join(f"w{number % 190}" for number in numbers)


PAIRS = [
    {"prompt": _words(i, i + 1), "chosen": _words(2 * i, 3), "rejected": _words(i + 5, 4 * i)} for i in range(1, 9)
]
UNPAIRED = [
    {"prompt": row["prompt"], "completion": row[which], "label": which == "chosen"}
    for row in PAIRS
    for which in ("chosen", "rejected")
]
PROMPTS = [{"prompt": row["prompt"]} for row in PAIRS]


def _reward(completions, **_):
    """Even words are good."""
    return [sum(int(word[1:]) % 2 == 0 for word in text.split()) / 8 for text in completions]


def _arguments(folder, config, **options):
    return config(
        str(folder), max_steps=3, per_device_train_batch_size=4, learning_rate=1e-2, report_to="none",
        disable_tqdm=True, logging_steps=1, activation_checkpointing=False, bf16=False, use_cpu=True,
        save_strategy="no", lr_scheduler_type="constant", **options,
    )  # fmt: skip


def _dpo(model, folder, tokenizer, **options):
    arguments = _arguments(folder, DPOConfig, **options)
    return DPOTrainer(
        model, args=arguments, train_dataset=datasets.Dataset.from_list(PAIRS), processing_class=tokenizer
    )


def _kto(model, folder, tokenizer):
    arguments, rows = _arguments(folder, KTOConfig), datasets.Dataset.from_list(UNPAIRED)
    return KTOTrainer(model, args=arguments, train_dataset=rows, processing_class=tokenizer)


def _online(trainer, config, model, folder, tokenizer):
    arguments = _arguments(folder, config, beta=0.1, num_generations=4, max_completion_length=8, disable_dropout=True)
    rows = datasets.Dataset.from_list(PROMPTS)
    return trainer(model, _reward, args=arguments, train_dataset=rows, processing_class=tokenizer)


def _grpo(*arguments):
    return _online(GRPOTrainer, GRPOConfig, *arguments)


def _rloo(*arguments):
    return _online(RLOOTrainer, RLOOConfig, *arguments)


def _start(trained, **options):
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.1)
    model = get_peft_model(make_llama(), config)
    milora.initialize_lora_milora_weights(model, **options)
    return train_briefly(model) if trained else model


@pytest.mark.parametrize("trained", [False, True], ids=["fresh", "after SFT"])
@pytest.mark.parametrize("make", [_dpo, *(pytest.param(make, marks=pytest.mark.slow) for make in (_kto, _grpo, _rloo))])
def test_the_reference_is_the_start(make, trained, tokenizer, tmp_path):
    model = _start(trained)
    start = logits_of(model)
    trainer = make(model, tmp_path, tokenizer)
    trainer.train()

    first = trainer.state.log_history[0]
    zero = ["rewards/chosen", "rewards/rejected", "rewards/margins", "kl"]
    found = {name: first[name] for name in zero if name in first}
    assert found and all(value == 0 for value in found.values()), first
    if make is _dpo:
        assert first["loss"] == pytest.approx(LN_2, abs=1e-6)
        assert trainer.state.log_history[2]["loss"] < first["loss"] - 1e-3

    policy = logits_of(model)
    assert drift(policy, start) > 1e-3
    model.set_adapter("ref")
    assert torch.equal(logits_of(model), start)
    model.set_adapter("default")
    milora.save_milora_as_lora(tmp_path / "lora", model)
    assert drift(logits_of(PeftModel.from_pretrained(make_llama(), tmp_path / "lora")), policy) < 1e-5
    model.save_pretrained(tmp_path / "raw")
    assert torch.equal(logits_of(milora.load_milora(make_llama(), tmp_path / "raw")), policy)
    assert torch.equal(logits_of(milora.load_milora(make_llama(), tmp_path / "raw" / "ref")), start)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"precompute_ref_log_probs": True}, {"form": "residual"}, {"resumed": True}])
def test_dpo_otherwise(options, tokenizer, tmp_path):
    options = dict(options)
    form, resumed = options.pop("form", "intact"), options.pop("resumed", False)
    model = _start(True, form=form)
    start = logits_of(model)
    if resumed:
        model.save_pretrained(tmp_path / "sft")
        model = milora.load_milora(make_llama(), tmp_path / "sft", is_trainable=True)
    trainer = _dpo(model, tmp_path, tokenizer, **options)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(LN_2, abs=1e-6)
    assert drift(logits_of(model), start) > 1e-3
    model.set_adapter("ref")
    assert torch.equal(logits_of(model), start)
