"""What makes a run another run, and what does not."""

import json

import pytest

from milora import MiloraError
from milora.run.directory import RunDirectory, create_run, open_run
from milora.run.identity import FORMAT, Identity
from milora.run.recipe import load_recipe
from milora.training.prepare import locate

SAME = [
    ["description=other"],
    ["training.log_steps=7", "training.report_to=none"],
    ["training.micro_batch_size=4", "training.activation_checkpointing=true", "training.save_steps=3"],
    ["evaluation.tasks=[]", "evaluation.limit=1"],
    ["adapter.components=minor", "training.loss_on=answer"],  # defaults, named
    ["training.warmup_steps=0.0", "training.epochs=1"],  # one number, written otherwise
]
OTHER = [
    ["seed=1"],
    ["adapter.rank=8"],
    ["data.template=alpaca"],
    ["data.on_bad_row=drop"],
    ["training.learning_rate=1e-4"],
    ["training.batch_size=8"],
    ["model.dtype=bfloat16"],
]


def digest(*overrides, recipe="quickstart", root=None):
    return locate(load_recipe(recipe, list(overrides)), root).path.name


@pytest.fixture
def root(tmp_path):
    return tmp_path / "runs"


@pytest.mark.parametrize("overrides", SAME, ids=" ".join)
def test_what_changes_no_weight_is_the_same_run(overrides, root):
    assert digest(*overrides, root=root) == digest(root=root)


@pytest.mark.parametrize("overrides", OTHER, ids=" ".join)
def test_what_changes_a_weight_is_another_run(overrides, root):
    assert digest(*overrides, root=root) != digest(root=root)


def test_the_best_step_depends_on_which_steps_are_saved(root):
    best = "training.keep=best"
    assert digest(best, root=root) != digest(best, "training.save_steps=3", root=root)


@pytest.mark.parametrize("other", ["adapter.dropout=0.1", "training.keep=best", "adapter.method=lora_ga"])
def test_passes_count_where_they_change_more_than_rounding(other, root):
    assert digest(other, root=root) != digest(other, "training.micro_batch_size=4", root=root)


def test_a_folder_with_a_sets_name_is_not_the_set(tmp_path, root, monkeypatch):
    (tmp_path / "gsm8k").mkdir()
    for split in ("train", "test"):
        (tmp_path / "gsm8k" / f"{split}.jsonl").write_text("{}\n")
    elsewhere = digest("data.name=gsm8k", f"data.data_dir={tmp_path}", root=root)
    monkeypatch.chdir(tmp_path)
    assert digest("data.name=gsm8k", "data.data_dir=.", root=root) == elsewhere


def test_a_data_file_counts_by_its_content(tmp_path, root):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "1", "answer": "2"}\n' * 100)
    first = digest(f"data.name={rows}", root=root)
    moved = tmp_path / "elsewhere.jsonl"
    moved.write_bytes(rows.read_bytes())
    assert digest(f"data.name={moved}", root=root) == first
    moved.write_bytes(rows.read_bytes().replace(b"2", b"3", 1))
    assert digest(f"data.name={moved}", root=root) != first


def test_every_file_of_a_folder_counts(tmp_path, root):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "1"}\n')
    first = digest(f"data.name={tmp_path}", root=root)
    (tmp_path / "notes.md").write_text("not rows")
    assert digest(f"data.name={tmp_path}", root=root) == first
    (tmp_path / "b.jsonl").write_text('{"text": "2"}\n')
    assert digest(f"data.name={tmp_path}", root=root) != first


def test_a_folder_with_the_name_of_a_set_does_not_count(tmp_path, root, monkeypatch):
    first = digest(recipe="chat-smoke", root=root)
    (tmp_path / "chat").mkdir()
    monkeypatch.chdir(tmp_path)
    assert digest(recipe="chat-smoke", root=root) == first


def test_a_named_sets_files_count_by_their_content(tmp_path, root):
    (tmp_path / "mawps").mkdir()
    for name in ("trainset", "validset", "testset"):
        (tmp_path / "mawps" / f"{name}.json").write_text("[]")
    overrides = ["data.name=mawps", f"data.data_dir={tmp_path}"]
    first = digest(*overrides, root=root)
    (tmp_path / "mawps" / "testset.json").write_text("[ ]")  # its questions are dropped from training
    second = digest(*overrides, root=root)
    (tmp_path / "mawps" / "trainset.json").write_text("[ ]")
    assert len({first, second, digest(*overrides, root=root)}) == 3


def test_a_models_files_count_by_their_content(tmp_path, root):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
        (tmp_path / name / "notes.md").write_text(name)  # not of the model
    found = [digest(f"model.name={tmp_path / name}", root=root) for name in ("one", "two")]
    assert found[0] == found[1]
    (tmp_path / "two" / "model.safetensors").write_bytes(b"Weights")
    assert digest(f"model.name={tmp_path / 'two'}", root=root) != found[0]


def test_runs_of_another_version_are_refused(root):
    run = create_run(locate(load_recipe("quickstart"), root))
    assert open_run(run.path) == run
    run.write(Identity(FORMAT - 1, "00000000"))
    with pytest.raises(MiloraError, match=r"another version of milora: its format is 1, and this version reads 2"):
        open_run(run.path)
    (run.path / "identity.json").unlink()  # as the first version left it, with keys that are gone
    (run.path / "recipe.yaml").write_text("name: old\ndata: {prompt: plain}\n")
    with pytest.raises(MiloraError, match="its format is 1"):
        open_run(run.path)


def test_a_record_that_is_not_one_is_named(root):
    run = create_run(locate(load_recipe("quickstart"), root))
    (run.path / "identity.json").write_text(json.dumps({"format": "two"}))
    with pytest.raises(MiloraError, match=r"identity\.json cannot be read"):
        RunDirectory(run.path, run.recipe).read(Identity)


def test_a_run_keeps_only_what_its_recipe_changes(root):
    run = create_run(locate(load_recipe("quickstart", ["adapter.rank=16"]), root))
    written = (run.path / "recipe.yaml").read_text()
    assert "rank: 16" in written and "dropout" not in written
    assert open_run(run.path).recipe == run.recipe
