"""Rows that share a forward pass do not see one another, and give the losses and gradients of padded rows.

Broken by: positions that do not restart, a mask that lets documents see one another, labels across documents, a model
whose attention is more than causal, processes with other numbers of passes.
"""

import random
from copy import deepcopy

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from milora import MiloraError
from milora.data.tokens import IGNORED
from milora.run.directory import create_run
from milora.run.recipe import load_recipe
from milora.run.records import TrainingRecord
from milora.training import attention
from milora.training.attention import choose_layout, lay_out
from milora.training.loss import can_chunk, loss_of_trained_tokens
from milora.training.packing import balance_rows, count_passes, divide_rows, row_lengths
from milora.training.prepare import locate
from milora.training.train import train
from tests.conftest import add_milora, make_gpt2, make_llama, make_qwen
from tests.training.test_loss import SMALL, make_mamba


def make_mistral(window=None):
    return MistralForCausalLM(MistralConfig(**SMALL, sliding_window=window))


def make_gemma2():
    """Attention with soft-capping."""
    return Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=8, query_pre_attn_scalar=8, sliding_window=64))


def make_gemma3():
    return Gemma3ForCausalLM(
        Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=4, layer_types=["sliding_attention", "full_attention"])
    )


def make_qwen3():
    return Qwen3ForCausalLM(Qwen3Config(**SMALL, head_dim=8))


def make_neox():
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(num_hidden_layers=2, hidden_size=32, intermediate_size=48, num_attention_heads=4, vocab_size=200)
    )


def make_opt():
    return OPTForCausalLM(
        OPTConfig(
            num_hidden_layers=2,
            hidden_size=32,
            ffn_dim=48,
            num_attention_heads=4,
            vocab_size=200,
            word_embed_proj_dim=32,
        )
    )


def make_bloom():
    """Its positions are biases that follow from the attention mask."""
    return BloomForCausalLM(BloomConfig(n_layer=2, hidden_size=32, n_head=4, vocab_size=200))


def make_hybrid():
    return Qwen3NextForCausalLM(
        Qwen3NextConfig(
            **SMALL,
            head_dim=8,
            num_experts=2,
            num_experts_per_tok=1,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=16,
            linear_num_key_heads=2,
            linear_num_value_heads=2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            layer_types=["linear_attention", "full_attention"],
        )
    )


def make_sinks():
    """transformers builds its mask without looking at the positions."""
    return GptOssForCausalLM(
        GptOssConfig(**SMALL, head_dim=8, num_local_experts=2, num_experts_per_tok=1, sliding_window=64)
    )


LAYOUTS = {
    make_llama: "documents",
    make_qwen: "documents",
    make_gpt2: "documents",
    make_qwen3: "documents",
    make_mistral: "documents",
    make_neox: "documents",
    make_opt: "documents",
    make_gemma2: "mask",
    make_gemma3: "mask",
    make_bloom: "padded",
    make_mamba: "padded",
    make_hybrid: "padded",
    make_sinks: "padded",
}


def make_rows(sizes=(9, 12, 4, 7, 12)):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 200, (len(sizes), max(sizes)), generator=generator)
    mask = (torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]).long()
    labels = tokens.masked_fill(mask == 0, IGNORED)
    labels[:, :2] = IGNORED
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


def measure(model, rows, layout):
    model.zero_grad()
    head = model.get_output_embeddings()
    in_chunks = layout != "padded" and can_chunk(model, head, layout)
    loss = loss_of_trained_tokens(model, head, lay_out(rows, layout), 30, in_chunks=in_chunks)
    loss.backward()
    return loss.item(), {
        name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
    }


def assert_same(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    for name, gradient in expected[1].items():
        assert torch.allclose(found[1][name], gradient, atol=1e-6, rtol=1e-4), name


@pytest.mark.parametrize("make", LAYOUTS, ids=lambda make: make.__name__)
def test_losses_and_gradients_are_those_of_padded_rows(make):
    torch.manual_seed(0)
    model, rows = make().eval(), make_rows()
    expected = measure(model, rows, "padded")
    layout = choose_layout(model, 12)
    assert layout == LAYOUTS[make]
    assert_same(measure(model, rows, layout), expected)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")  # PEFT corrects it for Conv1D
@pytest.mark.parametrize(
    "make", [make_llama, make_qwen, make_gpt2, make_gemma2, make_gemma3], ids=lambda make: make.__name__
)
def test_a_trajectory_is_that_of_padded_rows(make):
    """Ten steps of AdamW on three batches: differences would grow."""
    torch.manual_seed(0)
    start = add_milora(make().eval(), target_modules="all-linear")
    batches = [make_rows((9, 12, 4, 7)), make_rows((12, 3)), make_rows((5, 5, 12, 2, 8))]

    def train_with(layout):
        model = deepcopy(start)
        layout = layout or choose_layout(model, 12)
        optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-3)
        losses = []
        for step in range(10):
            loss = loss_of_trained_tokens(model, model.get_output_embeddings(), lay_out(batches[step % 3], layout))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    assert train_with(None) == pytest.approx(train_with("padded"), rel=1e-5)


def test_padding_on_the_left():
    model, rows = make_llama(), make_rows()
    turned = {
        name: torch.stack([row.roll(12 - size) for row, size in zip(tensor, row_lengths(rows), strict=True)])
        for name, tensor in rows.items()
    }
    expected = measure(model, rows, "padded")
    choose_layout(model, 12)
    assert_same(measure(model, turned, "documents"), expected)
    for part in divide_rows(turned, [[0, 2], [1, 3, 4]]):
        assert part["input_ids"].shape[1] == max(row_lengths(part))


def test_adapters():
    model, rows = add_milora(make_llama(), target_modules="all-linear"), make_rows()
    expected = measure(model, rows, "padded")
    assert choose_layout(model, 12) == "documents"
    assert_same(measure(model, rows, "documents"), expected)


def test_a_window_counts_where_a_row_is_longer():
    assert choose_layout(make_mistral(window=16), 16) == "documents"
    assert choose_layout(make_mistral(window=16), 17) == "mask"
    model, rows = make_mistral(window=5).eval(), make_rows()
    expected = measure(model, rows, "padded")
    assert_same(measure(model, rows, choose_layout(model, 12)), expected)
    model = make_mistral(window=16)
    choose_layout(model, 16)
    with pytest.raises(MiloraError, match="17 tokens is longer than the model's sliding window of 16"):
        measure(model, make_rows((17, 3)), "documents")


@pytest.mark.parametrize("contaminated", ["no positions", "an all-ones mask"])
def test_documents_that_see_one_another_are_noticed(contaminated, monkeypatch):
    """The two mistakes that transformers accepts in silence change the loss; the choice of a layout notices both."""
    model, rows = make_llama(), make_rows()

    def spoiled(batch, layout):
        asked = lay_out(batch, layout)
        if layout == "mask" and contaminated == "no positions":
            del asked["position_ids"]
        elif layout == "mask":
            asked["attention_mask"] = torch.ones_like(asked["input_ids"])
        return asked

    right = loss_of_trained_tokens(model, model.get_output_embeddings(), lay_out(rows, "mask"), 30).item()
    wrong = loss_of_trained_tokens(model, model.get_output_embeddings(), spoiled(rows, "mask"), 30).item()
    assert abs(wrong - right) > 1e-4 * right
    monkeypatch.setattr(attention, "lay_out", spoiled)
    assert not attention._keeps_apart(model, "mask")


def test_a_model_set_to_attend_by_document_refuses_padded_rows():
    model = make_llama()
    choose_layout(model, 12)
    with pytest.raises(MiloraError, match="cannot be computed by document"):
        model(**make_rows())


def test_passes_are_few_and_even():
    generator = random.Random(0)
    for _ in range(300):
        rows, size = generator.randint(1, 12), generator.randint(1, 4)
        lengths = [generator.randint(1, 50) for _ in range(rows)]
        passes = count_passes(lengths, size * max(lengths))
        assert passes <= -(-rows // size)
        groups = balance_rows(lengths, passes)
        tokens = [sum(lengths[row] for row in group) for group in groups]
        assert max(tokens) <= size * max(lengths)
        assert max(tokens) - min(tokens) <= max(lengths)
        assert sorted(row for group in groups for row in group) == list(range(rows))


def test_passes():
    assert count_passes([5, 3, 2, 4, 6], 20) == 1
    assert count_passes([5, 3, 2, 4, 6], 11) == 2
    assert balance_rows([5, 3, 2, 4, 6], 2) == [[1, 2, 4], [0, 3]]


SETTINGS = ["adapter.dropout=0", "training.batch_size=4", "training.max_steps=5", "training.report_to=none"]


def test_a_training_is_the_padded_one(small_recipe, tmp_path):
    """Losses, held-out losses and weights, in one pass or in several; the run says how its rows were laid out."""

    def train_with(name, *overrides):
        run = create_run(locate(load_recipe(small_recipe, [*SETTINGS, *overrides]), tmp_path / name))
        train(run)
        record = run.read(TrainingRecord)
        weights = load_file(run.adapter / "adapter_model.safetensors")
        return record, [each.loss for each in record.losses], weights

    plain, losses, weights = train_with("plain", "training.packing=false")
    assert plain.layout == "padded"
    for name, overrides in {
        "whole": [],
        "parts": ["training.micro_batch_size=2"],
        "rows": ["training.micro_batch_size=1"],
    }.items():
        record, found, trained = train_with(name, *overrides)
        assert record.layout == "documents"
        assert found == pytest.approx(losses, rel=1e-5)
        if name == "whole":  # it is the mean over passes
            assert record.held_out_loss == pytest.approx(plain.held_out_loss, rel=1e-5)
        assert record.tokens_per_step == plain.tokens_per_step
        for key, tensor in weights.items():
            assert torch.allclose(trained[key], tensor, atol=1e-4 * tensor.abs().max().item()), key
