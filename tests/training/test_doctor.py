"""What `milora doctor` says of a recipe before it is run, and what it warns of."""

import json
from dataclasses import replace

import pytest
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from milora.models.base import load_tokenizer
from milora.models.embedded import EMBEDDED
from milora.models.methods import make_config
from milora.run.recipe import list_recipes, load_recipe
from milora.training import diagnosis
from milora.training.advice import advise_on_rows, advise_on_size
from milora.training.estimate import estimate_memory, measure_size
from milora.training.probe import Probe
from milora.training.rows import prepare_rows


@pytest.fixture
def unprobed(monkeypatch):
    monkeypatch.setattr(diagnosis, "probe", lambda _: Probe(10**9, 100.0, 10.0, 1000.0))


def lines(out):
    return {line.partition(" ")[0]: line for line in out.splitlines()}


def test_a_recipe_that_is_ready(small_recipe, call, tmp_path):
    code, out, err = call("doctor", small_recipe, "--runs", tmp_path / "runs")
    assert code == 0 and "error" not in err and not (tmp_path / "runs").exists()
    found = lines(out)
    assert "parameters, float32" in found["model"] and "rank 4, on 14 layers" in found["adapter"]
    assert "64 rows, 8 held out; " in found["rows"] and "8 steps of 4 rows" in found["rows"]
    assert "Answer:⟦ " in found["sample"] and "arithmetic" in found["tasks"] and " GB are free" in found["disk"]
    assert "(measured: 3 steps on" in found["memory"] and "tokens/s" in found["time"]
    assert "the model has a chat template, and data.template=plain does not use it" in found["warning:"]


def test_one_thing_that_is_missing_does_not_hide_the_others(small_recipe, call, tmp_path, unprobed):
    code, out, err = call("doctor", small_recipe, "data.name=none.jsonl", "evaluation.tasks=[humaneval]")
    assert code == 1 and "Traceback" not in err
    assert err.count("error: ") == err.count("hint: ") == 2 and "none.jsonl" in err and "allow_code_execution" in err
    assert lines(out).keys() == {"model", "adapter", "disk"}
    code, out, err = call("doctor", small_recipe, f"model.name={tmp_path / 'none'}", "evaluation.tasks=[]")
    assert code == 1 and err.count("error: ") == 1, "the same error once"
    assert "64 rows, 8 held out; their tokens are not known" in lines(out)["rows"]


def test_a_model_that_is_too_large_to_try_is_estimated(small_recipe, call, monkeypatch):
    monkeypatch.setattr(diagnosis, "PROBED", 1e6)
    code, out, _ = call("doctor", small_recipe)
    assert code == 0
    found = lines(out)
    assert "(arithmetic" in found["memory"] and "(arithmetic" in found["time"] and "on one H100" in found["time"]


@pytest.mark.slow
@pytest.mark.parametrize("name", list_recipes())
def test_every_shipped_recipe(name, call, data_dir, unprobed):
    recipe = load_recipe(name)
    if recipe.model.name != EMBEDDED:
        pytest.skip("its model is on the hub")
    code, out, err = call("doctor", name, f"data.data_dir={data_dir}")
    assert "Traceback" not in err
    assert err.count("error: ") == err.count("hint: ") == code
    expected = {"code-smoke": "allow_code_execution", "instruct": "punkt_tab"}  # that has to be got first
    assert code == 0 or any(name.startswith(start) and reason in err for start, reason in expected.items()), err
    assert {"model", "adapter", "rows", "sample", "disk", "memory", "time"} <= lines(out).keys()


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(load_recipe("quickstart").model)


@pytest.fixture
def warn(tmp_path, tokenizer):
    def warn(rows, *overrides):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        own = [f"data.name={tmp_path / 'rows.jsonl'}", "data.validation_rows=0", *overrides]
        recipe = load_recipe("chat-smoke", own)
        return advise_on_rows(recipe, prepare_rows(recipe, tokenizer), tokenizer)

    return warn


def turn(question, answer):
    return {"question": question, "answer": answer}


SENTENCES = [turn(f"Why {n}?", f"Because it is {n}, and no other number.") for n in range(10)]


def test_rows_without_fault_are_not_warned_of(warn):
    assert warn(SENTENCES) == []


@pytest.mark.parametrize(
    ("rows", "overrides", "warning"),
    [
        ([turn(f"Is {n} even?", "no") for n in range(10)], ["data.template=tulu"], "most answers are one token"),
        (SENTENCES, ["training.max_length=42"], "the model would not learn to stop"),
        (SENTENCES, ["training.max_length=42"], "10 of 10 rows are cut"),
        (SENTENCES, ["data.template=alpaca"], "the model has a chat template, and data.template=alpaca"),
    ],
)
def test_rows_that_are_probably_not_meant(warn, rows, overrides, warning):
    assert any(warning in one for one in warn(rows, *overrides))


@pytest.fixture(scope="module")
def embedded_size():
    return measure_size(load_recipe("quickstart"))


@pytest.mark.parametrize(
    ("overrides", "warning"),
    [
        (["training.learning_rate=1e-7"], "learning_rate=1e-07 is far from what works for milora"),
        (["training.learning_rate=0.1"], "learning_rate=0.1 is far from"),
        (["adapter.method=loraplus", "training.learning_rate=3e-3"], "far from what works for loraplus"),
        (["adapter.method=full", "training.learning_rate=1e-3"], "far from what works for full"),
        (["adapter.rank=200"], "adapter.rank=200 is above the size of 60 layers; "),
        (["adapter.rank=200", "adapter.rank_pattern={k_proj: 8, v_proj: 8}"], None),
        ([], None),
    ],
)
def test_keys_that_are_probably_not_meant(overrides, warning, embedded_size):
    found = advise_on_size(load_recipe("quickstart", overrides), embedded_size)
    assert not found if warning is None else warning in found[0]


@pytest.mark.parametrize("method", ["milora", "lora", "dora", "full"])
def test_sizes_are_those_of_the_model(small_model, method):
    recipe = load_recipe("quickstart", [f"model.name={small_model}", f"adapter.method={method}", "adapter.rank=4"])
    size = measure_size(recipe)
    model = AutoModelForCausalLM.from_pretrained(small_model)
    assert size.total == model.num_parameters() and size.looked_up == 0 and size.vocabulary == 49152
    if method == "full":
        assert size.trainable == size.total and size.operations == 6 * size.total
        return
    lora = get_peft_model(model, make_config(recipe.adapter.model_copy(update={"method": "lora"})))
    assert size.trainable == lora.num_parameters(only_trainable=True) and len(size.layers) == 14
    assert size.operations == 4 * size.total + 6 * size.trainable


def test_memory_grows_with_what_is_kept(embedded_size):
    recipe = load_recipe("quickstart")
    memory = estimate_memory(recipe, embedded_size, 1000)
    training = recipe.training.model_copy(update={"activation_checkpointing": True})
    assert estimate_memory(recipe.model_copy(update={"training": training}), embedded_size, 1000) < memory
    assert estimate_memory(recipe, embedded_size, 2000) > memory > 4 * embedded_size.total
    assert estimate_memory(recipe, replace(embedded_size, trainable=10**9), 1000) > memory + 19e9
