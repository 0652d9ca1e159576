"""Every method: the base at step 0, the base under `disable_adapter()`, and the same answers once exported."""

import json

import datasets
import pytest
import torch
from peft import LoraConfig, LoraGAConfig, PeftModel, get_peft_model
from peft.tuners.lora import preprocess_loraga
from transformers import AutoModelForCausalLM

from milora.evaluation.target import target_of_run
from milora.method.errors import MiloraError
from milora.method.loading import load_milora
from milora.models.base import attach_adapter, load_model
from milora.models.export import export_run
from milora.models.methods import Course, add_adapter
from milora.run.directory import open_run
from milora.run.sections import AdapterSection
from tests.conftest import drift, logits_of, make_gpt2
from tests.process import run_milora

METHODS = ["milora", "lora", "rslora", "loraplus", "dora", "mica", "pissa", "olora", "lora_ga", "adalora"]


def make_course(length: int = 12) -> Course:
    """Eight short rows: what LoRA-GA takes its gradients from."""
    ids = torch.randint(0, 200, (8, length), generator=torch.Generator().manual_seed(0)).tolist()
    rows = datasets.Dataset.from_list([{"input_ids": row, "labels": row} for row in ids])
    return Course(10, rows, lambda batch: {key: torch.tensor([row[key] for row in batch]) for key in batch[0]}, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_step_zero_is_the_base(method, dtype, load_small):
    expected = logits_of(load_small(dtype))
    weights = {name: tensor.clone() for name, tensor in load_small(dtype).state_dict().items()}
    torch.manual_seed(0)
    section = AdapterSection(method=method, rank=8, alpha=16)
    model, _ = add_adapter(load_small(dtype), section, seed=0, jobs=1, course=make_course())
    if method == "dora":  # it divides the weight by its norm and multiplies again, in bf16 each rounded
        assert drift(logits_of(model), expected) <= (1e-6 if dtype == torch.float32 else 1e-2)
    else:
        assert torch.equal(logits_of(model), expected)
    with model.disable_adapter():
        assert torch.equal(logits_of(model), expected)
    kept = {name.replace(".base_layer", ""): tensor for name, tensor in model.get_base_model().state_dict().items()}
    assert all(torch.equal(kept[name], tensor) for name, tensor in weights.items())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["pissa", "olora"])
def test_the_factors_are_pefts_own(method, load_small):
    ours, _ = add_adapter(load_small(), AdapterSection(method=method, rank=4, alpha=4), seed=0, jobs=1)
    config = LoraConfig(r=4, lora_alpha=4, target_modules="all-linear", init_lora_weights=method)
    theirs = get_peft_model(load_small(), config).state_dict()
    mine = ours.state_dict()
    factors = [name for name in theirs if ".lora_A." in name or ".lora_B." in name]
    assert factors and all(torch.equal(mine[name], theirs[name]) for name in factors)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_lora_gas_factors_are_pefts_own(load_small):
    course, model = make_course(length=3), load_small()  # gradients of rank 16, of which svd_lowrank finds all
    torch.manual_seed(0)
    ours, _ = add_adapter(load_small(), AdapterSection(method="lora_ga", rank=4), seed=0, jobs=1, course=course)
    names = sorted(ours.peft_config["default"].target_modules)
    config = LoraConfig(
        r=4, lora_alpha=4, target_modules=names, init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig()
    )

    def pass_rows():
        for start in (0, 4):
            model(**course.collate([course.rows[index] for index in range(start, start + 4)])).loss.backward()

    preprocess_loraga(model, config, pass_rows)
    theirs = get_peft_model(model, config)
    # Singular vectors have either sign: AᵀA and BBᵀ are the same.
    mine, expected = ours.state_dict(), theirs.state_dict()
    for name in [name for name in expected if ".lora_A." in name]:
        other = name.replace("lora_A", "lora_B")
        assert drift(mine[name].T @ mine[name], expected[name].T @ expected[name]) < 1e-3
        assert drift(mine[other] @ mine[other].T, expected[other] @ expected[other].T) < 1e-3


def test_lora_ga_says_that_it_certifies_no_base(load_small, tmp_path):
    model, _ = add_adapter(load_small(), AdapterSection(method="lora_ga", rank=4), seed=0, jobs=1, course=make_course())
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="milora-uncertified"):  # plain PEFT refuses it
        PeftModel.from_pretrained(load_small(), tmp_path)
    assert torch.equal(logits_of(load_milora(load_small(), tmp_path)), logits_of(load_small()))


def test_lora_ga_names_layers_that_no_gradient_reaches(load_small):
    model = load_small()
    model.model.layers[1].self_attn.o_proj.weight.data.zero_()  # attention's other projections then have none
    section, course = AdapterSection(method="lora_ga", rank=4), make_course()
    with pytest.raises(MiloraError, match=r"reaches 3 of 14 layers \(.*layers\.1\.self_attn\.q_proj"):
        add_adapter(model, section, seed=0, jobs=1, course=course)
    model = load_small()
    model.unused = torch.nn.Linear(8, 8)
    with pytest.raises(MiloraError, match=r"reaches 1 of 15 layers \(.*unused"):
        add_adapter(model, section, seed=0, jobs=1, course=course)


def test_adalora_ends_at_its_rank_on_average(small_recipe, tmp_path):
    done = run_milora("train", small_recipe, "adapter.method=adalora", "--runs", tmp_path)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.iterdir()
    config = json.loads((path / "adapter" / "adapter_config.json").read_text())
    assert (config["init_r"], config["target_r"], config["total_step"]) == (6, 4, 8)
    kept = [sum(mask) for mask in config["rank_pattern"].values()]
    assert sum(kept) == 4 * len(kept) and len(set(kept)) > 1


@pytest.mark.parametrize("method", [*METHODS, "full"])
def test_trained_is_reloaded_is_exported(method, small_recipe, tmp_path):
    # AdaLoRA starts from zero, and is cut back while it trains.
    faster = ["training.learning_rate=3e-2"] if method == "adalora" else []
    done = run_milora("train", small_recipe, f"adapter.method={method}", *faster, "--runs", tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "runs").iterdir()
    run = open_run(path)
    before, after = json.loads((path / "training.json").read_text())["held_out_loss"]
    assert after != before
    base = logits_of(load_model(run.recipe.model))
    trained = logits_of(target_of_run(run).load())
    assert drift(trained, base) > 1e-4, "training changed nothing: this test shows nothing"
    merged = AutoModelForCausalLM.from_pretrained(
        export_run(run, run.trained, "merged", tmp_path / "merged"), dtype=torch.float32
    )
    assert drift(logits_of(merged), trained) < 1e-5
    if run.recipe.adapter.has_initial_factors:
        portable = attach_adapter(load_model(run.recipe.model), export_run(run, run.trained, "lora", tmp_path / "lora"))
        assert drift(logits_of(portable), trained) < 1e-5
        residual = export_run(run, run.trained, "residual", tmp_path / "residual")
        pair = attach_adapter(AutoModelForCausalLM.from_pretrained(residual, dtype=torch.float32), residual / "adapter")
        assert drift(logits_of(pair), trained) < 1e-5


def test_olora_certifies_its_base(load_small, tmp_path):
    model, _ = add_adapter(load_small(), AdapterSection(method="olora", rank=4), seed=0, jobs=1)
    model.save_pretrained(tmp_path)
    wrong = load_small()
    with torch.no_grad():
        for part in wrong.model.layers:
            part.mlp.up_proj.weight.add_(torch.randn_like(part.mlp.up_proj.weight) * 0.1)
    with pytest.raises(MiloraError, match="not of this base"):
        load_milora(wrong, tmp_path)
    load_milora(load_small(), tmp_path)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
def test_olora_refuses_transposed_weights():
    with pytest.raises(MiloraError, match="Conv1D"):
        add_adapter(make_gpt2(), AdapterSection(method="olora", rank=4), seed=0, jobs=1)
