"""Recipes: what resolves, and every way to get one wrong."""

import pytest

from milora import MiloraError
from milora.run.recipe import list_recipes, load_recipe


@pytest.mark.parametrize("name", list_recipes())
def test_shipped_recipes_resolve_and_round_trip(name, tmp_path):
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.description
    for every_key in (False, True):
        (tmp_path / "again.yaml").write_text(recipe.to_yaml(every_key=every_key))
        assert load_recipe(str(tmp_path / "again.yaml")) == recipe


def test_extends_takes_only_the_difference(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: quickstart\nname: mine\nadapter: {rank: 4}\n")
    mine, parent = load_recipe(str(tmp_path / "mine.yaml")), load_recipe("quickstart")
    assert (mine.name, mine.adapter.rank) == ("mine", 4)
    assert mine.training == parent.training


def test_shorthand_numbers_are_numbers():
    assert load_recipe("quickstart", ["training.learning_rate=3e-4"]).training.learning_rate == 3e-4


REFUSED = [
    (
        "quickstart",
        ["training.learning_rat=1"],
        "training.learning_rat is not a key: did you mean learning_rate",
    ),
    ("quickstart", ["optimizer=adam"], "optimizer is not a key"),
    ("vision-smoke", ["alignment.training.epoch=2"], "alignment.training.epoch is not a key: did you mean epochs"),
    ("vision-smoke", ["alignment.date=a"], "alignment.date is not a key: did you mean data"),
    ("quickstart", ["training.early_stopping_patience=2"], "early_stopping_patience .*set training.keep=best"),
    ("quickstart", ["data.prompt=plain"], "data.prompt is now called data.template"),
    (
        "quickstart",
        ["adapter.base=intact", "adapter.scale=x"],
        "now called adapter.form; .*now called adapter.weighting",
    ),
    ("quickstart", ["training.learning_rate=fast"], "training.learning_rate: Input should be a valid number"),
    ("quickstart", ["training.learning_rate=-1"], "greater than 0"),
    ("quickstart", ["adapter.rank=0"], "greater than 0"),
    ("quickstart", ["adapter.rank=8.5"], "adapter.rank"),
    ("quickstart", ["adapter.dropout=1"], "less than 1"),
    ("quickstart", ["adapter.components=smallest"], "'minor', 'principal', 'middle' or 'random'"),
    ("quickstart", ["adapter.method=lora", "adapter.form=residual"], "form: an option of method=milora, not of lora"),
    ("quickstart", ["adapter.method=dora", "adapter.loraplus_ratio=4"], "an option of method=loraplus, not of dora"),
    ("quickstart", ["training.micro_batch_size=3"], "not a multiple"),
    ("quickstart", ["name=a/b"], "name"),
    ("quickstart", ["rank"], "not key=value"),
    ("quickstart", ["training.keep=best", "data.validation_rows=0"], "needs held-out rows"),
    ("quickstart", ["evaluation.backend=server"], "a server needs its url"),
    ("quickstart", ["a=1", "b=2"], "a is not a key.*; b is not a key"),
    ("quickstart", ["name=${missing}"], "missing"),
    ("quikstart", [], "there is no recipe 'quikstart'"),
    ("nowhere.yaml", [], "there is no recipe"),
]


@pytest.mark.parametrize(("name", "overrides", "message"), REFUSED, ids=[row[2][:40] for row in REFUSED])
def test_refusals(name, overrides, message):
    with pytest.raises(MiloraError, match=message):
        load_recipe(name, overrides)


@pytest.mark.parametrize("text", ["- a\n- b\n", "name: [unclosed", "just words", ""])
def test_files_that_are_no_recipe(tmp_path, text):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(MiloraError, match="bad.yaml"):
        load_recipe(str(tmp_path / "bad.yaml"))


PAPER = {  # PROTOCOLS of the paper: rank, alpha, lr, batch, epochs, length, loss, tasks
    "math-llama2-7b": (64, 64, 3e-4, 16, 3, 2048, "answer", ["gsm8k", "math"]),
    "math-qwen2.5-7b": (64, 64, 3e-4, 16, 3, 2048, "answer", ["gsm8k", "math"]),
    "commonsense-llama2-7b": (32, 32, 3e-4, 16, 3, 256, "all", ["commonsense"]),
    "commonsense-llama3-8b": (32, 32, 3e-4, 16, 3, 256, "all", ["commonsense"]),
    "code-llama2-7b": (8, 8, 2e-5, 128, 1, 1024, "answer", ["humaneval"]),
    "instruct-llama2-7b": (32, 32, 3e-4, 16, 3, 2048, "answer", ["alpaca_eval_2", "ifeval", "follow_bench"]),
}


@pytest.mark.parametrize("name", PAPER)
def test_recipes_of_the_paper(name):
    recipe = load_recipe(name)
    adapter, training = recipe.adapter, recipe.training
    assert (
        adapter.rank,
        adapter.alpha,
        training.learning_rate,
        training.batch_size,
        training.epochs,
        training.max_length,
        training.loss_on,
        recipe.evaluation.tasks,
    ) == PAPER[name]
    assert recipe.evaluation.prompt == ("trained" if name.startswith("instruct") else "official")
    assert training.weight_decay == 0
    assert (training.keep, recipe.data.validation_rows) == (
        ("best", 120) if name.startswith("commonsense") else ("last", 0)
    )
