"""Mixtures of experts: each expert's matrix starts from its own minor components, in PEFT's layout.

Broken by: factors shared or shuffled among experts, a transposed stack, a sum that is not exactly W at step 0, or an
export that plain PEFT reads otherwise.
"""

import copy
import dataclasses
import io
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import ParamWrapper
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import milora
from milora.evaluation.generation.wide import widen
from milora.method import factors
from milora.method.analysis.change import measure_change
from milora.method.disk.start import initialize_checkpoint
from milora.method.export import replace_by_lora
from milora.method.factors import Choice
from milora.models.methods import add_adapter
from milora.models.targets import check_targets
from milora.run.sections import AdapterSection, ModelSection
from tests.architectures import ARCHITECTURES
from tests.conftest import drift

pytestmark = pytest.mark.filterwarnings(
    *("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
    "ignore:The following .*_pattern keys did not match",  # PEFT compares them with modules alone, and uses them
)

EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
# PEFT rewrites all-linear of the first four to the experts and the router; those of the others must be named.
REWRITTEN = ["mixtral", "qwen3_moe", "olmoe", "deepseek_v3"]
NAMED = ["qwen2_moe", "gpt_oss", "granitemoe", "qwen3_next"]
FAMILIES = REWRITTEN + NAMED


def add_lora(name: str, model, *, rank: int = 4, **options) -> PeftModel:
    """A router with four experts has four components."""
    named = {} if name in REWRITTEN else {"target_modules": ["q_proj", "o_proj"], "target_parameters": EXPERTS}
    config = {"r": rank, "lora_alpha": 2 * rank, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    return get_peft_model(model, LoraConfig(**config | named | options))


def start(name: str, dtype: torch.dtype = torch.float32, **options) -> PeftModel:
    model = add_lora(name, ARCHITECTURES[name].build(dtype), **options)
    milora.initialize_lora_milora_weights(model)
    return model


def logits(name: str, model) -> Tensor:
    with torch.no_grad():
        return model.eval()(**ARCHITECTURES[name].batch()).logits


def train(name: str, model: PeftModel) -> PeftModel:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    model.train()
    for _ in range(3):
        model(**ARCHITECTURES[name].batch()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def wrappers(model) -> dict[str, ParamWrapper]:
    return {name: module for name, module in model.named_modules() if isinstance(module, ParamWrapper)}


def matrices(layer: ParamWrapper) -> Tensor:
    """The parameter as (experts, out, in), in float64; those of GPT-OSS are stored transposed."""
    weight = layer.get_param().detach().double().reshape(layer.num_experts, *layer.get_param().shape[-2:])
    return weight.mT if weight.shape[1:] != (layer.out_features, layer.in_features) else weight


def products(model) -> dict[str, Tensor]:
    """s·B A of each expert, (experts, out, in), in float64."""
    found = {}
    for path, layer in wrappers(model).items():
        r, experts = layer.r["default"], layer.num_experts
        A = layer.lora_A["default"].weight.double().reshape(experts, r, -1)
        B = layer.lora_B["default"].weight.double().reshape(-1, r, experts)
        found[path] = layer.scaling["default"] * torch.einsum("ore,eri->eoi", B, A)
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_each_expert_starts_from_its_own_minor_components(name):
    """s·B₀A₀ of each expert is what a dense SVD in float64 gives, and so are the report's singular values."""
    model = add_lora(name, ARCHITECTURES[name].build())
    report = milora.initialize_lora_milora_weights(model)
    layers = wrappers(model)
    assert sum(layer.num_experts > 1 for layer in layers.values()) in (2, 4)  # DeepSeek's first layer is dense
    for path, layer in layers.items():
        r, experts, product = layer.r["default"], layer.num_experts, products(model)[path]
        label = f"{path.replace('.base_layer', '')}.{layer.parameter_name}"
        for expert, W in enumerate(matrices(layer)):
            U, S, Vh = torch.linalg.svd(W, full_matrices=False)
            minor = (U[:, -r:] * S[-r:]) @ Vh[-r:]
            assert drift(product[expert], minor) < 1e-4
            found = report.layers[f"{label}[{expert}]" if experts > 1 else label]
            assert torch.allclose(torch.tensor(found.band).double(), S[[-r, -1]], rtol=1e-4, atol=1e-7)
            assert found.rank == r


def test_experts_that_are_decomposed_together(monkeypatch, tmp_path):
    """As on a GPU, three at a time, and with some of them in the cache."""
    name = FAMILIES[0]
    one_by_one, together, resumed = (add_lora(name, ARCHITECTURES[name].build()) for _ in range(3))
    milora.initialize_lora_milora_weights(one_by_one)
    monkeypatch.setattr(factors, "count_together", lambda *_: 3)
    report = milora.initialize_lora_milora_weights(together, cache=tmp_path)
    for entry in sorted(tmp_path.iterdir())[::2]:
        entry.unlink()
    milora.initialize_lora_milora_weights(resumed, cache=tmp_path)
    assert {layer.certificate.method for layer in report.layers.values()} >= {"gram"}
    expected, found, again = (products(model) for model in (one_by_one, together, resumed))
    for path, product in expected.items():
        assert drift(found[path], product) < 1e-4, path
        assert torch.equal(found[path], again[path]), path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_outputs_do_not_change(name, dtype):
    expected = logits(name, ARCHITECTURES[name].build(dtype))
    model = start(name, dtype)
    assert torch.equal(logits(name, model), expected)
    assert torch.equal(logits(name, model.train()), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_trained_model_is_saved_merged_and_switched_off(name, tmp_path):
    base = logits(name, ARCHITECTURES[name].build())
    model = train(name, start(name))
    trained = logits(name, model)
    assert drift(trained, base) > 1e-3
    model.save_pretrained(tmp_path / "raw")
    assert torch.equal(logits(name, milora.load_milora(ARCHITECTURES[name].build(), tmp_path / "raw")), trained)
    with model.disable_adapter():
        assert torch.equal(logits(name, model), base)
    weights = {path: layer.get_param().clone() for path, layer in wrappers(model).items()}
    model.merge_adapter(safe_merge=True)
    assert drift(logits(name, model), trained) < 1e-5
    model.unmerge_adapter()
    assert all(torch.equal(layer.get_param(), weights[path]) for path, layer in wrappers(model).items())
    assert torch.equal(logits(name, model), trained)
    assert drift(logits(name, copy.deepcopy(model).merge_and_unload()), trained) < 1e-5
    assert torch.equal(logits(name, model.unload()), base)


@pytest.mark.slow
def test_the_exports_in_plain_peft(tmp_path):
    """A fresh process, without milora, for the exports of all families."""
    expected = {}
    for name in FAMILIES:
        model = train(name, start(name))
        expected[name] = logits(name, model)
        report = milora.save_milora_as_lora(tmp_path / name, model)
        assert report.rank == 2 * max(layer.r["default"] for layer in wrappers(model).values())
    subprocess.run([sys.executable, "-m", "tests.plain_peft", str(tmp_path)], check=True, cwd=Path(__file__).parents[2])
    answers = load_file(tmp_path / "answers.safetensors")
    assert answers.keys() == expected.keys()
    for name, answer in answers.items():
        assert drift(answer, expected[name]) < 1e-5, name


@pytest.mark.parametrize("name", FAMILIES)
def test_from_a_checkpoint_on_disk(name, tmp_path):
    """transformers stores most experts one by one, and their gate and up projections apart."""
    model = ARCHITECTURES[name].build()
    model.save_pretrained(tmp_path / "model", max_shard_size="20kB")
    expected = start(name)
    expected.save_pretrained(tmp_path / "expected")
    with torch.device("meta"):
        skeleton = ARCHITECTURES[name].auto.from_config(model.config)
    initialize_checkpoint(add_lora(name, skeleton), tmp_path / "model", tmp_path / "out", Choice())
    written, right = (load_file(tmp_path / folder / "adapter_model.safetensors") for folder in ("out", "expected"))
    assert written.keys() == right.keys()
    assert all(torch.equal(factor, right[key]) for key, factor in written.items())
    loaded = milora.load_milora(ARCHITECTURES[name].build(), tmp_path / "out")
    assert torch.equal(logits(name, loaded), logits(name, ARCHITECTURES[name].build()))
    assert wrappers(loaded).keys() == wrappers(expected).keys()


@pytest.mark.parametrize("trained", [False, True], ids=["fresh", "trained"])
@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_the_reference_of_preference_trainers(name, trained):
    """TRL adds an adapter from the config of the first, and copies every parameter by its name."""
    model = start(name)
    if trained:
        train(name, model)
    before = logits(name, model)
    model.add_adapter("ref", model.peft_config["default"])
    for parameter_name, parameter in model.named_parameters():
        if ".default." in parameter_name:
            model.get_parameter(parameter_name.replace(".default.", ".ref.")).data.copy_(parameter.data)
    train(name, model)
    assert drift(logits(name, model), before) > 1e-3
    model.set_adapter("ref")
    assert torch.equal(logits(name, model), before)


def test_beside_an_ordinary_adapter(tmp_path):
    """Both active are the sum of both; each alone is unchanged, and so is the base after both were merged."""
    name = "gpt_oss"
    model = start(name)
    config = LoraConfig(
        r=2,
        target_modules=["q_proj", "o_proj"],
        target_parameters=EXPERTS,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    model.add_adapter("other", config)
    base = logits(name, ARCHITECTURES[name].build())
    assert torch.equal(logits(name, model), base)
    train(name, model)
    layer = model.base_model.model.model.layers[0].mlp.experts
    deltas = [layer.get_delta_weight(adapter) for adapter in ("default", "other")]
    weight = layer.get_param().clone()
    with layer._activate_lora(["default", "other"]):
        assert torch.allclose(layer.get_param(), weight + deltas[0] + deltas[1], atol=1e-6)
    for order in (["default", "other"], ["other", "default"], ["default"], ["other"]):
        layer.merge(adapter_names=order)
        assert torch.allclose(
            layer.get_param(), weight + sum(layer.get_delta_weight(adapter) for adapter in order), atol=1e-6
        )
        layer.unmerge()
        assert torch.allclose(layer.get_param(), weight, atol=1e-6)
        assert order[0] != "default" or torch.equal(layer.get_param(), weight)
        layer.get_param().data = weight.clone()
    model.delete_adapter("default")
    model.set_adapter("other")
    assert drift(logits(name, model), base) > 1e-3


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_every_way_to_compute_experts(implementation):
    name = "qwen3_moe"
    model = ARCHITECTURES[name].build()
    model.set_experts_implementation(implementation)
    base = logits(name, model)
    model = add_lora(name, model)
    milora.initialize_lora_milora_weights(model)
    assert torch.equal(logits(name, model), base)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    train(name, model)
    moved = [p for key, p in model.named_parameters() if "experts" in key and "lora_B" in key]
    initial = [b for key, b in model.named_buffers() if "experts" in key and "lora_initial_B" in key]
    assert moved and all(not torch.equal(p, b) for p, b in zip(moved, initial, strict=True))


def test_copies_and_pickles():
    name = "mixtral"
    model = train(name, start(name))
    expected = logits(name, model)
    assert torch.equal(logits(name, copy.deepcopy(model)), expected)
    assert torch.equal(logits(name, pickle.loads(pickle.dumps(model))), expected)  # noqa: S301  its own
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    other = start(name)
    other.load_state_dict(torch.load(buffer))
    assert torch.equal(logits(name, other), expected)


def test_factors_that_were_made_before(tmp_path):
    name = "granitemoe"
    model = add_lora(name, ARCHITECTURES[name].build())
    state = milora.get_milora_state_dict(model)
    layer = next(key for key in state if key.endswith("experts.lora_A.weight")).removesuffix(".lora_A.weight")
    assert state[f"{layer}.singular_values"].shape == (4, 5)
    save_file(state, tmp_path / "factors.safetensors")
    milora.initialize_lora_milora_weights(model, load_file(tmp_path / "factors.safetensors"))
    direct = start(name).state_dict()
    assert all(torch.equal(value, direct[key]) for key, value in model.state_dict().items())


def test_recompressed(tmp_path):
    """Each expert is compressed for itself: the best of that rank, and the error says how good."""
    name = "mixtral"
    model = train(name, start(name))
    report = milora.save_milora_as_lora(tmp_path, model, rank=4)
    assert 0 < report.largest_error < 1
    layer = next(layer for path, layer in wrappers(model).items() if path.endswith("layers.0.mlp.experts"))
    delta = layer.get_delta_weight("default").double()
    plain = PeftModel.from_pretrained(ARCHITECTURES[name].build(), tmp_path)
    found = wrappers(plain)["base_model.model.model.layers.0.mlp.experts"].get_delta_weight("default")
    for expert in range(4):
        U, S, Vh = torch.linalg.svd(delta[expert], full_matrices=False)
        assert drift(found[expert], (U[:, :4] * S[:4]) @ Vh[:4]) < 1e-5


def test_as_it_is_measured_and_scored():
    """The size of the update, and the ordinary LoRA that scoring uses in its place."""
    name = "gpt_oss"
    model = train(name, start(name))
    trained = logits(name, model)
    merged = copy.deepcopy(model).merge_and_unload().state_dict()
    base = ARCHITECTURES[name].build().state_dict()
    change = sum((merged[key].double() - weight.double()).square().sum() for key, weight in base.items()).sqrt().item()
    assert measure_change(model) == pytest.approx(change, rel=1e-4)
    assert drift(logits(name, widen(replace_by_lora(model))), trained) < 1e-5


def test_another_base_is_refused(tmp_path):
    """Two experts that changed places are another base, and so is half of them."""
    name = "gpt_oss"
    start(name).save_pretrained(tmp_path)
    base = ARCHITECTURES[name].build()
    down = base.model.layers[1].mlp.experts.down_proj
    down.data = down.data[[0, 2, 1, 3]]
    with pytest.raises(milora.MiloraError, match=r"layers\.1\.mlp\.experts.*not of this base model"):
        milora.load_milora(base, tmp_path)
    smaller = dataclasses.replace(
        ARCHITECTURES[name], changes=ARCHITECTURES[name].changes | {"num_local_experts": 2, "num_experts": 2}
    )
    with pytest.raises(milora.MiloraError, match="not of this base model"):
        milora.load_milora(smaller.build(), tmp_path)


def test_residual_form_is_refused():
    model = add_lora("mixtral", ARCHITECTURES["mixtral"].build())
    with pytest.raises(milora.MiloraError, match=r'mlp\.gate: form="residual" does not support experts.*intact'):
        milora.initialize_lora_milora_weights(model, form="residual")


DOCS = Path(__file__).parents[2].joinpath("docs", "mixtures.md").read_text()


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_the_code_of_the_docs(name, tmp_path):
    wide = dataclasses.replace(ARCHITECTURES[name], changes=ARCHITECTURES[name].changes | {"head_dim": 16})
    wide.build().save_pretrained(tmp_path)
    names = {"name": str(tmp_path), "milora": milora, "AutoModelForCausalLM": AutoModelForCausalLM}
    exec(
        re.search(r"```python\n(.*?)```", DOCS, re.DOTALL).group(1),
        names | {"LoraConfig": LoraConfig, "get_peft_model": get_peft_model},
        found := {},
    )
    assert found["report"].share > 0.9
    assert any(label.endswith("experts.gate_up_proj[3]") for label in found["report"].layers)


def test_what_all_linear_covers():
    """The table of the docs: the experts of the first row, and not those of the second."""
    rows = [line for line in DOCS.splitlines() if line.startswith("| M") or line.startswith("| Q")]
    rewritten = [*REWRITTEN, "qwen3_next"]
    assert (
        "Mixtral, Qwen3-MoE, DeepSeek-V3, OLMoE, Qwen3-Next" in rows[0] and "Qwen2-MoE, GPT-OSS, Granite-MoE" in rows[1]
    )
    for name in FAMILIES:
        model = get_peft_model(ARCHITECTURES[name].build(), LoraConfig(r=4, target_modules="all-linear"))
        ranks = {
            layer.parameter_name: (layer.r["default"], layer.scaling["default"]) for layer in wrappers(model).values()
        }
        assert ranks == ({"gate_up_proj": (8, 2), "down_proj": (4, 2), "weight": (4, 2)} if name in rewritten else {})
        dense = [
            key
            for key, module in model.named_modules()
            if key.endswith((".gate_proj", ".up_proj")) and hasattr(module, "r")
        ]
        assert not (dense and name in rewritten)


@pytest.mark.parametrize("name", FAMILIES)
def test_where_peft_keeps_the_factors(name):
    """As the docs say: those of gate_up_proj are in the inner wrapper."""
    found = {path.rpartition(".experts")[2]: layer.parameter_name for path, layer in wrappers(start(name)).items()}
    assert (found[""], found[".base_layer"]) == ("down_proj", "gate_up_proj")


@pytest.fixture
def stored(tmp_path):
    ARCHITECTURES["mixtral"].build().save_pretrained(tmp_path / "mixtral")
    ARCHITECTURES["gpt_oss"].build().save_pretrained(tmp_path / "gpt_oss")
    return tmp_path


def test_init_of_named_experts(call, stored):
    options = ("--targets", "q_proj,o_proj", "--parameters", ",".join(EXPERTS), "--alpha", 8, "--rank", 4)
    code, _, err = call("init", stored / "gpt_oss", *options, "-o", stored / "out")
    assert code == 0, err
    start("gpt_oss").save_pretrained(stored / "expected")
    written, right = (load_file(stored / folder / "adapter_model.safetensors") for folder in ("out", "expected"))
    assert written.keys() == right.keys() and all(torch.equal(written[key], right[key]) for key in right)


def test_init_leaves_narrow_layers_ordinary(call, stored):
    code, _, err = call("init", stored / "mixtral", "--rank", 8, "-o", stored / "out")
    assert code == 2 and "2 × gate.weight: rank 8 is above 4" in err
    options = ("--rank", 8, "--unsupported", "lora", "-o", stored / "out")
    code, _, err = call("init", stored / "mixtral", *options)
    assert code == 0 and "warning: 2 of 14 layers are ordinary LoRA, not MiLoRA: 2 × gate.weight" in err
    model = milora.load_milora(ARCHITECTURES["mixtral"].build(), stored / "out", is_trainable=True)
    assert torch.equal(logits("mixtral", model), logits("mixtral", ARCHITECTURES["mixtral"].build()))
    (router,) = {
        (layer.r["default"], layer.scaling["default"])
        for path, layer in wrappers(model).items()
        if path.endswith("gate")
    }
    assert router == (4, 1)
    assert all(layer.lora_A["default"].weight.std() > 0.01 for layer in wrappers(model).values())
    trained = logits("mixtral", train("mixtral", model))
    milora.save_milora_as_lora(stored / "lora", model)
    plain = PeftModel.from_pretrained(ARCHITECTURES["mixtral"].build(), stored / "lora")
    assert drift(logits("mixtral", plain), trained) < 1e-5
    code, _, err = call("init", stored / "mixtral", *options[:-1], stored / "pair", "--form", "residual")
    assert code == 2 and "cannot start from their components" in err and "unsupported" not in err


def test_dropout_is_refused_before_a_model_is_loaded(stored):
    """PEFT's all-linear of this model contains its experts."""
    section = AdapterSection(rank=4, dropout=0.1)
    with pytest.raises(milora.MiloraError, match=r"dropout=0.1: PEFT has no dropout for the weights of experts"):
        check_targets(ModelSection(name=str(stored / "mixtral")), section)


@pytest.mark.parametrize("method", ["pissa", "olora"])
def test_other_starts_are_refused(method):
    with pytest.raises(milora.MiloraError, match=f"PEFT's {method} does not support experts"):
        add_adapter(ARCHITECTURES["mixtral"].build(), AdapterSection(rank=4, method=method), 0, jobs=1)


def test_experts_in_8_bits_are_refused():
    base = ARCHITECTURES["gpt_oss"].build()
    experts = base.model.layers[0].mlp.experts
    experts.down_proj = torch.nn.Parameter(experts.down_proj.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(milora.MiloraError, match=r"mlp\.experts: the weight is quantized by GptOssExperts"):
        milora.initialize_lora_milora_weights(add_lora("gpt_oss", base))
