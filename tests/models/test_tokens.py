"""Added tokens, and tokenizers that do not fit their model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from milora.evaluation.target import target_of_run
from milora.method.errors import MiloraError
from milora.method.loading import load_milora
from milora.models.base import added_ids, count_embedded, load_model, load_tokenizer
from milora.models.export import export_run
from milora.models.methods import add_adapter
from milora.run.directory import open_run
from milora.run.sections import AdapterSection, ModelSection
from tests.conftest import drift, logits_of


@pytest.fixture
def alter(small_model, tmp_path):
    """A copy of the small model with a changed tokenizer and config."""

    def alter(config=None, **tokenizer):
        folder = tmp_path / "altered"
        shutil.copytree(small_model, folder)
        for name, changes in (("tokenizer_config.json", tokenizer), ("config.json", config or {})):
            path = folder / name
            path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return ModelSection(name=str(folder), dtype="float32")

    return alter


def test_added_tokens_are_one_id_each_and_start_at_the_mean(small_model):
    section = ModelSection(name=str(small_model), dtype="float32", added_tokens=["<think>", "</think>"])
    tokenizer, model = load_tokenizer(section), load_model(section)
    first, second = tokenizer.convert_tokens_to_ids(section.added_tokens)
    ids = tokenizer("<think>Two.</think>", split_special_tokens=True)["input_ids"]
    assert ids[0] == first and ids[-1] == second
    weight = model.get_input_embeddings().weight.data
    assert len(weight) == second + 1 == count_embedded(section, tokenizer)
    torch.testing.assert_close(weight[first], weight[:first].mean(0))
    assert torch.equal(weight, load_model(section).get_input_embeddings().weight.data)


def test_a_known_token_is_trained_without_new_rows(small_model):
    section = ModelSection(name=str(small_model), dtype="float32", added_tokens=["<|im_start|>"])
    plain = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    model = load_model(section)
    assert model.get_input_embeddings().weight.shape == plain.get_input_embeddings().weight.shape
    tuned, _ = add_adapter(model, AdapterSection(rank=4), seed=0, jobs=1, tokens=[1])
    assert torch.equal(logits_of(tuned), logits_of(plain))
    trained = [name for name, part in tuned.named_parameters() if part.requires_grad and "lora_" not in name]
    assert len(trained) == 1 and "trainable_tokens_delta" in trained[0]


def test_a_tokenizer_without_an_end_takes_that_of_the_config(alter):
    section = alter(eos_token=None, pad_token=None)
    tokenizer = load_tokenizer(section)
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"


def test_a_model_without_any_end_is_refused(alter):
    section = alter({"eos_token_id": None}, eos_token=None, pad_token=None)
    with pytest.raises(MiloraError, match="has no end-of-sequence token.*set eos_token in its tokenizer_config.json"):
        load_tokenizer(section)


def test_a_pad_token_that_the_model_does_not_embed_is_not_used(alter):
    tokenizer = load_tokenizer(alter(pad_token="[PAD]"))
    assert len(tokenizer) == 49153 and tokenizer.pad_token == tokenizer.eos_token


def test_rows_with_tokens_that_the_model_does_not_embed_are_refused(alter, call, tmp_path):
    section = alter(additional_special_tokens=["<|extra|>"])
    Path(section.name, "chat_template.jinja").write_text("{{ '<|extra|>' }}" + CHAT)
    assert len(load_tokenizer(section)) == 49153
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "1+1?", "answer": "2"}) + "\n")
    (tmp_path / "r.yaml").write_text(
        f"name: r\nmodel: {{name: {section.name}, dtype: float32}}\n"
        "data: {name: rows.jsonl, validation_rows: 0, template: chat}\n"
    )
    code, _, err = call("train", "r.yaml")
    assert code == 2 and "'<|extra|>'" in err and "embeds only 49152 tokens" in err and "model.added_tokens" in err


CHAT = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the adapter contains 3 whole tensor")
def test_a_run_trains_added_tokens_and_whole_modules(small_recipe, call, tmp_path):
    code, _, err = call(
        *("run", small_recipe, "model.added_tokens=[Question,<think>]", "adapter.modules_to_save=[model.norm]"),
        *("training.max_steps=2", "evaluation.limit=2", "--runs", tmp_path / "runs"),
    )
    assert code == 0, err
    (path,) = (tmp_path / "runs").iterdir()
    run = open_run(path)
    base = load_model(run.recipe.model)
    trained = target_of_run(run).load()
    resumed = load_milora(load_model(run.recipe.model), run.adapter)
    merged = AutoModelForCausalLM.from_pretrained(
        export_run(run, run.trained, "merged", tmp_path / "merged"), dtype=torch.float32
    )
    ids = load_tokenizer(run.recipe.model)("Question: <think>", return_tensors="pt")["input_ids"]
    assert 49152 in ids
    with torch.no_grad():
        answers = [model.eval()(ids).logits for model in (trained, resumed, merged)]
        assert drift(answers[0], base.eval()(ids).logits) > 1e-4
    assert drift(answers[1], answers[0]) <= 1e-5 and drift(answers[2], answers[0]) <= 1e-5
    known = base.get_input_embeddings().weight.data
    rows = merged.get_input_embeddings().weight.data
    changed = (rows != known).any(1).nonzero().flatten().tolist()
    assert changed == sorted(added_ids(run.recipe.model, load_tokenizer(run.recipe.model)))
    assert not torch.equal(merged.model.norm.weight, base.model.norm.weight)


def test_the_tokenizer_beside_mistral_commons_is_loaded(alter, small_model):
    """transformers prefers mistral-common's where that is installed, as it is beside vLLM."""
    data = Path(pytest.importorskip("mistral_common").__file__).parent / "data"
    section = alter({"model_type": "mistral", "architectures": ["MistralForCausalLM"]})
    shutil.copy(data / "tekken_240911.json", Path(section.name) / "tekken.json")
    tokenizer = load_tokenizer(section)
    assert tokenizer.get_vocab() == load_tokenizer(ModelSection(name=str(small_model))).get_vocab()
