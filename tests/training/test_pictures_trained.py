"""Models that take pictures: one number from training to what others load, on LLaVA and on Qwen2-VL."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoModelForImageTextToText

from milora import MiloraError, load_milora
from milora.data.conversation import Conversation
from milora.data.processor import Pictures
from milora.data.training_rows import load_training_rows
from milora.evaluation.posing import pictures_of
from milora.evaluation.target import target_of_run
from milora.models.base import attach_adapter, load_model, load_tokenizer
from milora.models.export import export_run
from milora.models.init import write_start
from milora.models.vision import load_processor
from milora.run.directory import RunDirectory, create_run
from milora.run.recipe import Recipe, load_recipe
from milora.run.records import TrainingRecord
from milora.run.sections import AdapterSection, ModelSection
from milora.training import train as training
from milora.training.loss import loss_of_trained_tokens
from milora.training.pixels import ModalitySampler, PictureCollator, forward_epochs, take_group
from milora.training.prepare import check_pictures_of, locate, prepare, prepare_inputs
from milora.training.rows import prepare_rows
from milora.training.train import train
from tests.conftest import drift
from tests.pictures import draw

# What servers do not load of such an adapter: the projector.
pytestmark = pytest.mark.filterwarnings("ignore:the adapter contains .* whole tensor:milora.MiloraWarning")

COLORS = ("red", "green", "blue", "gray")
MODELS = ["tiny_llava", "tiny_qwen_vl"]


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve questions about pictures of several sizes, and five without."""
    folder = tmp_path_factory.mktemp("rows")
    lines = []
    for index in range(12):
        color = COLORS[index % 4]
        draw(folder / f"{index}.png", color, (24 + 8 * (index % 3), 24))
        turns = [{"from": "human", "value": "<image>\nWhich color?"}, {"from": "gpt", "value": color}]
        lines.append({"id": str(index), "image": f"{index}.png", "conversations": turns})
    lines += [{"question": f"{n} + 1?", "answer": str(n + 1)} for n in range(5)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "rows.jsonl"


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def make_recipe(model: Path, rows: Path, folder: Path, *overrides: str) -> Recipe:
    file = folder / "recipe.yaml"
    file.write_text(
        f"""name: pictured
model: {{name: {model}, dtype: float32}}
adapter: {{rank: 4}}
data: {{name: {rows}, template: chat, validation_rows: 4}}
training: {{max_steps: 2, batch_size: 4, micro_batch_size: 2, learning_rate: 1e-2, projector_learning_rate: 1e-2,
  max_length: 128, save_steps: 1, report_to: none}}
"""
    )
    return load_recipe(str(file), list(overrides))


def train_here(recipe: Recipe, runs: Path) -> RunDirectory:
    run = create_run(locate(recipe, runs))
    train(run)
    return run


def ask(model: nn.Module, folder: Path, rows: Path) -> Tensor:
    """The logits of two questions about pictures of different sizes."""
    section = ModelSection(name=str(folder), dtype="float32")
    tokenizer, pictures = load_tokenizer(section), Pictures(partial(load_processor, section))
    recipe = make_recipe(folder, rows, rows.parent)
    prepared = prepare_rows(recipe, tokenizer, pictures=pictures).train
    chosen = [row for row in prepared if row["pictures"]][:2]
    inputs = PictureCollator(tokenizer, pictures, 2).whole(chosen)
    with torch.no_grad():
        logits: Tensor = model.eval()(**inputs).logits
    return logits


def projector_of(model: nn.Module) -> dict[str, Tensor]:
    names = ("multi_modal_projector.", "merger.")
    return {name: part for name, part in model.state_dict().items() if any(each in name for each in names)}


def test_start_training_reload_export_and_merge_are_one_model(model, rows, tmp_path):
    recipe = make_recipe(model, rows, tmp_path)
    section, base = recipe.model, load_model(recipe.model)
    expected = ask(base, model, rows)
    prepared = prepare(create_run(locate(recipe, tmp_path / "started")), prepare_inputs(recipe))
    assert drift(ask(prepared.model, model, rows), expected) <= 1e-6
    run = train_here(recipe, tmp_path / "runs")
    record = run.read(TrainingRecord)
    assert record.layout == "padded" and record.data.dropped == 0
    trained = ask(attach_adapter(load_model(section), run.adapter), model, rows)
    assert drift(trained, expected) > 1e-3

    exported = export_run(run, run.trained, "lora")
    keys = {key.partition(".lora_")[0] for key in load_file(exported / "adapter_model.safetensors")}
    prefix = "base_model.model.model."
    of_projector = {key for key in keys if "projector" in key or "merger" in key}
    assert of_projector and all(key.startswith(f"{prefix}language_model.layers.") for key in keys - of_projector)
    plain = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(model), exported)
    assert drift(ask(plain, model, rows), trained) <= 1e-5
    tower = [name for name, part in plain.named_modules() if hasattr(part, "lora_A") and "language_model" not in name]
    assert not tower

    merged = export_run(run, run.trained, "merged")
    loaded = AutoModelForImageTextToText.from_pretrained(merged)
    assert drift(ask(loaded, merged, rows), trained) <= 1e-5  # with the processor that was saved with it
    after = projector_of(loaded)
    assert after.keys() and all(not torch.equal(after[name], part) for name, part in projector_of(base).items())


def test_a_start_from_disk_is_the_base(model, rows, tmp_path):
    section = ModelSection(name=str(model), dtype="float32")
    write_start(section, AdapterSection(rank=4), tmp_path / "start", seed=0, jobs=1)
    base = load_model(section)
    expected = ask(base, model, rows)
    started = load_milora(base, tmp_path / "start")
    assert drift(ask(started, model, rows), expected) <= 1e-6
    named = {name for name, part in started.named_modules() if hasattr(part, "lora_A")}
    assert named and all("language_model" in name for name in named)


def test_the_loss_of_a_step_is_that_of_the_model_row_by_row(model, rows, tmp_path):
    recipe = make_recipe(model, rows, tmp_path)
    prepared = prepare(create_run(locate(recipe, tmp_path)), prepare_inputs(recipe))
    chosen = [row for row in prepared.rows.train if row["pictures"]][:3]
    text = next(row for row in prepared.rows.train if not row["pictures"])
    collate = prepared.collator
    network = prepared.model.eval()
    head = network.get_output_embeddings()
    count = sum(label != -100 for row in [*chosen, text] for label in row["labels"])
    with torch.no_grad():
        together = loss_of_trained_tokens(network, head, collate.whole([*chosen, text]), count)
        alone = [collate.whole([row]) for row in [*chosen, text]]
        sums = [float(network(**inputs).loss) * int((inputs["labels"][:, 1:] != -100).sum()) for inputs in alone]
    assert float(together) == pytest.approx(sum(sums) / count, rel=1e-5)


def test_a_batch_is_decoded_group_by_group(tiny_qwen_vl, rows, tmp_path):
    recipe = make_recipe(tiny_qwen_vl, rows, tmp_path)
    prepared = prepare(create_run(locate(recipe, tmp_path)), prepare_inputs(recipe))
    collator, table = prepared.collator, prepared.rows.train
    batch = collator([table[index] for index in range(4)])
    assert len(batch["pictures"]) == 2
    with pytest.raises(ValueError, match="unpack"):
        take_group(batch)


def test_an_interrupted_run_of_two_stages_resumes_to_the_same_adapter(tiny_llava, rows, tmp_path, monkeypatch):
    stages = ["alignment.training.max_steps=2", "alignment.training.batch_size=4", "alignment.training.save_steps=1"]
    stages += ["alignment.training.max_length=128", "alignment.training.report_to=none", "training.max_steps=3"]
    recipe = make_recipe(tiny_llava, rows, tmp_path, *stages)
    whole = train_here(recipe, tmp_path / "whole")
    (first,) = whole.alignment.iterdir()
    aligned, trained = (load_file(path / "adapter_model.safetensors") for path in (first / "adapter", whole.adapter))
    assert aligned.keys() == {key for key in trained if "projector" in key}
    assert all(not torch.equal(aligned[key], trained[key]) for key in aligned)

    def stop(*_: object) -> None:
        raise RuntimeError("killed")

    for _ in range(2):  # at the end of each stage
        with monkeypatch.context() as patch:
            patch.setattr(training, "record_training", stop)
            with pytest.raises(RuntimeError, match="killed"):
                train_here(recipe, tmp_path / "killed")
        if not (tmp_path / "killed").glob("*/start.json"):
            train_here(recipe, tmp_path / "killed")
    resumed = train_here(recipe, tmp_path / "killed")
    files = [run.adapter / "adapter_model.safetensors" for run in (whole, resumed)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_what_is_wrong_with_the_second_stage_is_said_before_the_first(tiny_llava, rows, tmp_path):
    first = [f"alignment.data.name={rows}", "alignment.data.template=chat", "alignment.training.max_steps=1"]
    recipe = make_recipe(tiny_llava, rows, tmp_path, *first, "data.image_dir=/nowhere")
    with pytest.raises(MiloraError, match="12 pictures of 12 rows cannot be used"):
        train_here(recipe, tmp_path / "runs")
    assert not list((tmp_path / "runs").rglob("start.json"))


@pytest.mark.parametrize("method", ["lora", "pissa", "lora_ga", "dora", "full", "projector"])
def test_every_kind_of_method_trains(tiny_llava, rows, tmp_path, method):
    recipe = make_recipe(tiny_llava, rows, tmp_path, f"adapter.method={method}")
    run = train_here(recipe, tmp_path / "runs")
    before, after = (
        load_model(recipe.model),
        AutoModelForImageTextToText.from_pretrained(export_run(run, run.trained, "merged")),
    )
    changed = {name for name, part in after.state_dict().items() if not torch.equal(part, before.state_dict()[name])}
    assert any("multi_modal_projector" in name for name in changed)
    assert not any("vision_tower" in name for name in changed)
    assert any("language_model" in name for name in changed) == (method != "projector")
    assert pictures_of(target_of_run(run).model).placeholder == "<image>"  # fully tuned, it has its own processor


def test_a_frozen_projector_is_not_saved(tiny_llava, rows, tmp_path):
    run = train_here(
        make_recipe(tiny_llava, rows, tmp_path, "training.projector_learning_rate=null"), tmp_path / "runs"
    )
    assert not any("projector" in key for key in load_file(run.adapter / "adapter_model.safetensors"))


def test_the_projector_has_its_own_learning_rate(tiny_llava, rows, tmp_path):
    recipe = make_recipe(tiny_llava, rows, tmp_path, "training.projector_learning_rate=1e-30")
    run = train_here(recipe, tmp_path / "runs")
    after = load_file(run.adapter / "adapter_model.safetensors")
    for name, part in projector_of(load_model(recipe.model)).items():
        assert torch.allclose(after[f"base_model.model.{name}"], part, atol=1e-20)


def test_rows_of_a_batch_all_have_pictures_or_none(rows):
    has = [index % 3 > 0 for index in range(50)]
    sampler = ModalitySampler(has, 8, seed=1)
    first = list(sampler)
    assert sorted(first) == list(range(50)) and first == list(sampler)
    whole = [first[start : start + 8] for start in range(0, 48, 8)]
    mixed = [batch for batch in whole if len({has[index] for index in batch}) > 1]
    assert len(mixed) <= 1
    sampler.set_epoch(1)
    assert list(sampler) != first


@pytest.mark.parametrize("processes", [1, 2])
def test_a_resumed_epoch_has_its_own_order(processes):
    def read(skipped: int) -> list[list[int]]:
        loader = DataLoader(range(16), batch_size=4 // processes, sampler=ModalitySampler([True] * 16, 4, seed=0))
        loader = forward_epochs(prepare_data_loader(loader, num_processes=processes, put_on_device=False))
        loader = skip_first_batches(loader, skipped) if skipped else loader
        loader.set_epoch(1)
        return [batch.tolist() for batch in loader]

    assert read(1) == read(0)[1:]


@pytest.mark.parametrize(("pictured", "held_out"), [(6, [False, False]), (2, [True, True])])
def test_pictures_may_be_in_the_held_out_rows_alone_or_in_the_others(tiny_llava, rows, tmp_path, pictured, held_out):
    lines = rows.read_text().split("\n")
    own = rows.with_name(f"{pictured}.jsonl")
    own.write_text("\n".join([*lines[:pictured], *lines[-5:]]))
    changes = ["training.projector_learning_rate=null", "training.max_steps=1", "data.validation_rows=2"]

    def draws(seed: int) -> bool:
        recipe = make_recipe(tiny_llava, own, tmp_path, *changes, f"data.seed={seed}")
        found = load_training_rows(recipe.data).held_out
        return [bool(Conversation.from_row(row).images) for row in found] == held_out

    seed = next(seed for seed in range(1000) if draws(seed))
    run = train_here(make_recipe(tiny_llava, own, tmp_path, *changes, f"data.seed={seed}"), tmp_path / "runs")
    record = run.read(TrainingRecord)
    assert record.held_out_loss is not None and record.layout == "padded"  # packed rows are given no pictures


@pytest.mark.parametrize("launcher", ["fsdp2", "zero3", "zero2"])
def test_rows_with_and_without_pictures_are_refused_where_weights_are_sharded(
    tiny_llava, rows, tmp_path, monkeypatch, launcher
):
    recipe = make_recipe(tiny_llava, rows, tmp_path)
    tokenizer, pictures = load_tokenizer(recipe.model), Pictures(partial(load_processor, recipe.model))
    mixed = prepare_rows(recipe, tokenizer, pictures=pictures)
    alike = replace(mixed, train=mixed.train.filter(lambda row: bool(row["pictures"])), held_out=None)
    check_pictures_of(recipe, mixed)
    sharded = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    if launcher != "fsdp2":
        sharded = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": launcher[-1]}
    for name, value in {**sharded, "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    check_pictures_of(recipe, alike)
    refused = pytest.raises(MiloraError, match=f"some rows have pictures and others have none: {launcher} shards")
    with nullcontext() if launcher == "zero2" else refused:
        check_pictures_of(recipe, mixed)


def test_prepared_rows_are_those_of_the_processor(tiny_qwen_vl, rows, tmp_path):
    """Broken by: tokens for pictures as another model with the same tokenizer sees them."""

    def prepare_of(model: Path) -> Any:
        recipe = make_recipe(model, rows, tmp_path)
        pictures = Pictures(partial(load_processor, recipe.model))
        return prepare_rows(recipe, load_tokenizer(recipe.model), tmp_path / "cache", pictures).train["input_ids"][:]

    other = tmp_path / "other"
    shutil.copytree(tiny_qwen_vl, other)
    settings = other / "preprocessor_config.json"
    changed = json.loads(settings.read_text()) | {"size": {"shortest_edge": 64, "longest_edge": 256}}
    settings.write_text(json.dumps(changed))
    first = prepare_of(tiny_qwen_vl)
    assert prepare_of(other) != first and prepare_of(tiny_qwen_vl) == first


def test_a_row_is_never_cut_inside_a_picture(tiny_llava, rows, tmp_path):
    recipe = make_recipe(tiny_llava, rows, tmp_path, "training.max_length=20", "data.validation_rows=0")
    training = recipe.training.model_copy(update={"projector_learning_rate": None})
    recipe = recipe.model_copy(update={"training": training})
    prepared = prepare(create_run(locate(recipe, tmp_path)), prepare_inputs(recipe))
    assert not prepared.rows.has_pictures and len(prepared.rows.train) == 5
    assert prepared.rows.report.dropped == 12


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["model.name=SMALL"], "a picture"),
        (["model.name=SMALL", "training.projector_learning_rate=1e-4"], "has no projector"),
        (["data.name=arithmetic", "data.template=chat"], "no row of arithmetic has a picture"),
        (["data.template=plain"], "contains a picture"),
        (["data.image_dir=/nowhere"], "does not exist"),
    ],
)
def test_nothing_is_trained_on_blanks(tiny_llava, small_model, rows, tmp_path, call, overrides, reason):
    given = [override.replace("SMALL", str(small_model)) for override in overrides]
    if given[0].startswith("model.name") and len(given) == 1:
        given.append("training.projector_learning_rate=null")
    make_recipe(tiny_llava, rows, tmp_path)
    code, _, error = call("train", tmp_path / "recipe.yaml", *given, "--runs", tmp_path / "runs")
    assert code == 2 and reason in error and "Traceback" not in error
    assert not any((tmp_path / "runs").glob("*/adapter"))
