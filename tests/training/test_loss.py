"""The loss of the trained tokens alone is the loss over whole logits, on every shape of model.

Broken by: positions that are off by one, logits that are not scaled or capped as the model does, a wrong count.
"""

import dataclasses

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from milora.data.tokens import IGNORED
from milora.training import loss
from milora.training.loss import can_chunk, loss_of_trained_tokens
from tests.conftest import add_milora, make_gpt2, make_llama, make_qwen

SMALL = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 200,
}


def make_gemma():
    """Its logits are capped, and so are its attention's."""
    return Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=2.0))


def make_granite():
    """Its logits are divided by `logits_scaling`."""
    return GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=3.0))


def make_mamba():
    return MambaForCausalLM(MambaConfig(num_hidden_layers=2, hidden_size=32, vocab_size=200))


MAKERS = [make_llama, make_qwen, make_gpt2, make_gemma, make_granite, make_mamba]


def make_rows():
    """Three padded rows with answers in other places, one of several turns."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 200, (3, 12), generator=generator)
    mask = torch.ones_like(tokens)
    labels = tokens.clone()
    labels[0, :5] = labels[1, :9] = labels[2, 3:6] = labels[2, :2] = IGNORED
    mask[0, 10:] = 0
    labels[0, 10:] = IGNORED
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


def loss_over_whole_logits(model, rows, count):
    logits = model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits
    shifted = logits[:, :-1].reshape(-1, logits.shape[-1]), rows["labels"][:, 1:].reshape(-1)
    return torch.nn.functional.cross_entropy(*shifted, ignore_index=IGNORED, reduction="sum") / count


def assert_whole(make, count, **options):
    torch.manual_seed(0)
    model, rows = make().eval(), make_rows()  # without dropout
    expected = loss_over_whole_logits(model, rows, count or int((rows["labels"][:, 1:] != IGNORED).sum()))
    expected.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    found = loss_of_trained_tokens(model, model.get_output_embeddings(), rows, count, **options)
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, gradients[name], atol=1e-6, rtol=1e-4), name
    whole = model(input_ids=rows["input_ids"]).logits
    assert whole.shape == (3, 12, 200), "the head sees everything again"


@pytest.mark.parametrize("count", [None, 50], ids=["the mean", "of a step"])
@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_loss_and_gradients_are_those_of_whole_logits(make, count):
    assert_whole(make, count)


@pytest.mark.parametrize("count", [None, 50], ids=["the mean", "of a step"])
@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_in_chunks_they_are_the_same_or_the_model_is_not_chunked(monkeypatch, make, count):
    monkeypatch.setattr(loss, "CHUNKS", dataclasses.replace(loss.CHUNKS, batch_chunk_size=4))
    model = make().eval()
    is_plain = make not in (make_gemma, make_granite)
    assert can_chunk(model, model.get_output_embeddings()) == is_plain
    if is_plain:
        assert_whole(make, count, in_chunks=True)


def change_logits(model, change):
    """Let the model do something to its logits before their loss, as a new architecture may."""
    genuine = model.loss_function
    model.loss_function = lambda logits, **options: genuine(change(logits), **options)


def test_a_head_or_a_loss_of_another_kind_is_not_chunked():
    for change in (lambda model: model.bfloat16(), lambda model: change_logits(model, torch.tanh)):
        model = make_llama()
        change(model)
        assert not can_chunk(model, model.get_output_embeddings())
    tuned = get_peft_model(make_llama(), LoraConfig(target_modules=["lm_head"], r=2))
    assert not can_chunk(tuned, tuned.get_output_embeddings())
    tuned = get_peft_model(make_llama(), LoraConfig(target_modules=["q_proj"], trainable_token_indices=[3], r=2))
    assert can_chunk(tuned, tuned.get_output_embeddings()) == (not tuned.config.tie_word_embeddings)


def test_asking_draws_no_random_number():
    model = add_milora(make_llama(), r=4, dropout=0.5).train()
    state = torch.get_rng_state()
    assert can_chunk(model, model.get_output_embeddings())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("in_chunks", [False, True])
def test_it_is_an_adapters_loss_with_what_the_adapter_adds(in_chunks):
    rows, chunks = make_rows(), {"in_chunks": in_chunks}
    tuned = add_milora(make_llama(), r=4)
    expected = loss_over_whole_logits(tuned, rows, 50)
    found = loss_of_trained_tokens(tuned, tuned.get_output_embeddings(), rows, 50, **chunks)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    penalized = get_peft_model(make_llama(), AdaLoraConfig(total_step=10, orth_reg_weight=0.5, task_type="CAUSAL_LM"))
    added = loss_of_trained_tokens(penalized, penalized.get_output_embeddings(), rows, 50, **chunks)
    assert added.item() > loss_over_whole_logits(penalized, rows, 50).item() + 0.01


@pytest.mark.parametrize("in_chunks", [False, True])
def test_rows_without_a_trained_token_are_a_zero_with_gradients(in_chunks):
    """A process whose last batch has repeated rows alone still takes part in the backward pass."""
    model, rows = make_llama().train(), make_rows()
    rows["labels"][:] = IGNORED
    found = loss_of_trained_tokens(model, model.get_output_embeddings(), rows, 50, in_chunks=in_chunks)
    found.backward()
    assert found.item() == 0
    assert all(not parameter.grad.any() for parameter in model.parameters())
