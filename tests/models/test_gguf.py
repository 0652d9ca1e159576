"""The adapter for llama.cpp: its tensors, what it cannot contain, and its answers through llama.cpp's own server.

The names were recorded from llama.cpp's convert_lora_to_gguf.py. Its tensors for these models were the same bytes, but
for GPT-2, which it transposes once too often.
"""

import json
from urllib.request import Request, urlopen

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import milora
from milora.models.embedded import EMBEDDED
from milora.models.gguf import ARCHITECTURES, write_gguf
from milora.models.located import resolve_model
from tests.conftest import add_milora, make_gpt2, make_llama, make_qwen
from tests.served import read_gguf, serving, write_float_gguf

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


def make_lora(model, folder, **options):
    """Save a LoRA with random factors on a model, for all of its linear layers."""
    torch.manual_seed(5)
    options = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | options
    tuned = get_peft_model(model, LoraConfig(**options, init_lora_weights=False))
    tuned.save_pretrained(folder)
    return tuned


SEPARATE = "attn_k attn_output attn_q attn_v ffn_down ffn_gate ffn_up"
PLAIN = "attn_k attn_output attn_q attn_v ffn_down ffn_up"
FUSED = "attn_output attn_qkv ffn_down ffn_up"
NAMES = {
    **dict.fromkeys(ARCHITECTURES, SEPARATE),
    **dict.fromkeys(("phi", "starcoder2"), PLAIN),
    **dict.fromkeys(("gpt2", "phi3"), FUSED),
}
GGUF_NAMES = {"cohere": "command-r", "gemma3_text": "gemma3", "mistral": "llama", "phi": "phi2"}
SMALL = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_layer_has_its_place(kind, tmp_path):
    options = SMALL if kind != "gpt2" else {"n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 40}
    if kind in ("cohere", "olmo", "olmo2", "phi", "phi3", "starcoder2"):
        options = {key: value for key, value in options.items() if key != "head_dim"}
    config = AutoConfig.for_model(kind, **options)
    make_lora(AutoModelForCausalLM.from_config(config), tmp_path)
    fields, tensors = read_gguf(write_gguf(tmp_path / "out", tmp_path, config))
    kinds = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 6.0}
    assert kinds.items() <= fields.items() and fields["general.architecture"] == GGUF_NAMES.get(kind, kind)
    names = [f"blk.{block}.{part}.weight" for block in (0, 1) for part in NAMES[kind].split()]
    assert tensors.keys() == {f"{name}.lora_{factor}" for name in names for factor in "ab"}
    # Every product is there with its norm, which a permutation of rows keeps.
    state = load_file(tmp_path / "adapter_model.safetensors")
    norms = [state[key.replace("lora_A", "lora_B")] @ A for key, A in state.items() if "lora_A" in key]
    found = [tensors[f"{name}.lora_b"] @ tensors[f"{name}.lora_a"] for name in names]
    assert sorted(x.norm().item() for x in found) == pytest.approx(sorted(x.norm().item() for x in norms), rel=1e-6)
    assert sorted(tuple(x.shape) for x in found) == sorted(tuple(x.shape) for x in norms)


@pytest.mark.parametrize(("make", "moved"), [(make_llama, True), (make_qwen, False)], ids=["Llama", "Qwen2"])
def test_rows_of_q_and_k_are_in_the_order_of_llama_cpp(make, moved, tmp_path):
    """4 heads of q and 2 of k: row 2i of a head is row i, and row 2i + 1 is row i + d/2."""
    make_lora(model := make(), tmp_path)
    _, tensors = read_gguf(write_gguf(tmp_path / "out", tmp_path, model.config))
    state = load_file(tmp_path / "adapter_model.safetensors")
    for layer, name, heads in (("q_proj", "attn_q", 4), ("k_proj", "attn_k", 2), ("v_proj", "attn_v", 2)):
        key = f"base_model.model.model.layers.1.self_attn.{layer}.lora_%s.weight"
        A, B = state[key % "A"], state[key % "B"]
        assert torch.equal(tensors[f"blk.1.{name}.weight.lora_a"], A)
        size = len(B) // heads
        rows = [head * size + i + half for head in range(heads) for i in range(size // 2) for half in (0, size // 2)]
        expected = B[rows] if moved and layer != "v_proj" else B
        assert torch.equal(tensors[f"blk.1.{name}.weight.lora_b"], expected)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"v_proj": 2}},
        {"alpha_pattern": {"v_proj": 20}},
        {"alpha_pattern": {"layers.1.self_attn.v_proj": 3}, "rank_pattern": {"v_proj": 8}, "use_rslora": True},
    ],
    ids=str,
)
def test_the_scaling_is_pefts(options, tmp_path):
    tuned = make_lora(model := make_llama(), tmp_path, **options)
    fields, tensors = read_gguf(write_gguf(tmp_path / "out", tmp_path, model.config))
    for block in (0, 1):
        layer = tuned.base_model.model.model.layers[block].self_attn.v_proj
        A, B = (tensors[f"blk.{block}.attn_v.weight.lora_{factor}"] for factor in "ab")
        found = (B @ A) * fields["adapter.lora.alpha"] / len(A)  # as llama.cpp computes it
        assert torch.allclose(found, layer.get_delta_weight("default"), atol=1e-7)


def test_half_precision_factors_are_written_in_float32(tmp_path):
    make_lora(model := make_qwen(), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    state = {name: value.bfloat16() for name, value in load_file(file).items()}
    save_file(state, file)
    _, tensors = read_gguf(write_gguf(tmp_path / "out", tmp_path, model.config))
    A = state["base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"]
    assert torch.equal(tensors["blk.0.ffn_up.weight.lora_a"], A.float())


REFUSED = {
    "does not support DoRA": {"use_dora": True},
    "and not base_model.model.lm_head.weight": {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]},
    "embed_tokens.lora_embedding_A": {"target_modules": ["embed_tokens", "q_proj"]},
    "down_proj.lora_B.bias": {"lora_bias": True},
    "token_adapter": {"trainable_token_indices": [1], "target_modules": ["q_proj"]},
}


@pytest.mark.parametrize(("message", "options"), REFUSED.items(), ids=REFUSED)
def test_what_llama_cpp_would_leave_out_is_refused(message, options, tmp_path):
    make_lora(model := make_llama(), tmp_path, **options)
    with pytest.raises(milora.MiloraError, match=message) as raised:
        write_gguf(tmp_path / "out", tmp_path, model.config)
    assert "--as merged" in raised.value.hint and not (tmp_path / "out").exists()


def test_a_tied_head_and_an_unknown_architecture_are_refused(tmp_path):
    make_lora(model := make_llama(tied=True), tmp_path, target_modules=["lm_head", "q_proj"])
    with pytest.raises(milora.MiloraError, match="lm_head: llama.cpp's llama does not have this tensor"):
        write_gguf(tmp_path / "out", tmp_path, model.config)
    with pytest.raises(milora.MiloraError, match="not for falcon"):
        write_gguf(tmp_path / "out", tmp_path, AutoConfig.for_model("falcon"))
    make_lora(model := make_llama(), tmp_path, target_modules=["lm_head", "q_proj"])
    assert "output.weight.lora_a" in read_gguf(write_gguf(tmp_path / "out", tmp_path, model.config))[1]


def test_gpt2_is_not_transposed(tmp_path):
    make_lora(model := make_gpt2(), tmp_path, target_modules=["c_attn"], fan_in_fan_out=True)
    _, tensors = read_gguf(write_gguf(tmp_path / "out", tmp_path, model.config))
    assert tensors["blk.0.attn_qkv.weight.lora_a"].shape == (4, 48)
    assert tensors["blk.0.attn_qkv.weight.lora_b"].shape == (144, 4)


def ask(url, tokens, count):
    """Return the greedy tokens, and the candidates of each with their log-probabilities."""
    body = {"prompt": tokens, "n_predict": count, "temperature": 0, "n_probs": 5, "return_tokens": True}
    content = json.dumps(body | {"cache_prompt": False}).encode()
    with urlopen(Request(url.removesuffix("/v1") + "/completion", content)) as answer:
        found = json.load(answer)
    return found["tokens"], [
        {each["id"]: each["logprob"] for each in place["top_logprobs"]} for place in found["completion_probabilities"]
    ]


def move(model, size=0.02):
    """Change A and B of every layer as training does, at random."""
    torch.manual_seed(6)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert "lora_" in name
            parameter.data += size * torch.randn_like(parameter)
    return model.eval()


PROMPTS = [
    f"{start} {end}"
    for start in ("The sum of", "A friend of", "When", "1, 2,")
    for end in ("a", "7", "the", "not", "one")
]


@pytest.mark.slow
def test_llama_cpp_answers_as_peft_does(small_model, load_whole, tmp_path):
    """Two layers in float32: greedy tokens, and log-probabilities of the five most likely ones at each."""
    options = {"use_rslora": True, "alpha_pattern": {"q_proj": 3}, "rank_pattern": {"down_proj": 2}}
    milora.save_milora_as_lora(tmp_path / "lora", move(add_milora(load_whole(), r=4, **options)))
    base, tokenizer = load_whole(), AutoTokenizer.from_pretrained(small_model)
    tuned = PeftModel.from_pretrained(base, tmp_path / "lora").eval()
    adapter = write_gguf(tmp_path, tmp_path / "lora", base.config)
    write_float_gguf(tmp_path / "base.gguf", 2)
    changed = 0
    with serving(tmp_path / "base.gguf", adapter=adapter, context=64) as server, torch.no_grad():
        for prompt in PROMPTS:
            tokens = tokenizer(prompt)["input_ids"]
            found, candidates = ask(server.url, tokens, 6)
            whole = torch.tensor([tokens + found])
            values = tuned(whole).logits[0, len(tokens) - 1 : -1].log_softmax(-1)
            assert found == values.argmax(-1).tolist()
            for place, likely in enumerate(candidates):
                assert all(abs(values[place, token] - value) < 1e-3 for token, value in likely.items())
            with tuned.disable_adapter():
                changed += found != tuned(whole).logits[0, len(tokens) - 1 : -1].argmax(-1).tolist()
    assert len(PROMPTS) == 20 and changed > 10


@pytest.mark.slow
def test_the_embedded_model_in_four_bits_says_what_its_adapter_learned(tmp_path):
    """All layers, through q and k; without the adapter the answer is another."""
    base = AutoModelForCausalLM.from_pretrained(resolve_model(EMBEDDED), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(EMBEDDED))
    model = add_milora(base, r=4, target_modules=["q_proj", "k_proj", "v_proj"])
    prompt, answer = (tokenizer(text)["input_ids"] for text in ("The secret word is", " marmalade on toast."))
    tokens = torch.tensor([prompt + answer])
    labels = torch.tensor([[-100] * len(prompt) + answer])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(12):
        loss = model.train()(tokens, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.05
    milora.save_milora_as_lora(tmp_path / "lora", model)
    adapter = write_gguf(tmp_path, tmp_path / "lora", base.config)
    with serving(adapter=adapter, context=64) as server:
        assert ask(server.url, prompt, len(answer))[0] == answer
    with serving(context=64) as server:
        assert ask(server.url, prompt, len(answer))[0] != answer
