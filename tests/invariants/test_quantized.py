"""The invariants on a 4-bit and an 8-bit base (bitsandbytes, CPU)."""

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import milora
from milora import MiloraError, MiloraWarning
from milora.method.variant.weights import read_weight
from milora.models.base import attach_adapter, load_model
from milora.models.export import export_run
from milora.run.directory import locate_export, open_run
from milora.run.recipe import load_recipe
from milora.run.records import TrainingRecord
from tests.conftest import add_milora, drift, logits_of, train_briefly
from tests.process import run_milora

BITS = {
    "nf4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32),
    "int8": BitsAndBytesConfig(load_in_8bit=True),
}
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(params=BITS)
def load_quantized(request, small_model):
    config = BITS[request.param]
    return lambda: AutoModelForCausalLM.from_pretrained(
        small_model, quantization_config=config, dtype=torch.float32, device_map={"": "cpu"}
    )


def test_step_zero_is_the_quantized_base(load_quantized):
    assert torch.equal(logits_of(add_milora(load_quantized())), logits_of(load_quantized()))


def test_quantized_base_trains_and_reloads(load_quantized, tmp_path):
    model = train_briefly(add_milora(load_quantized()))
    trained = logits_of(model)
    assert drift(trained, logits_of(load_quantized())) > 1e-2
    with model.disable_adapter():
        assert torch.equal(logits_of(model), logits_of(load_quantized()))
    model.save_pretrained(tmp_path)
    assert drift(logits_of(milora.load_milora(load_quantized(), tmp_path)), trained) < 1e-5
    with pytest.raises(MiloraError, match="quantized"):
        model.merge_adapter()


def test_what_is_proven_of_a_quantized_base(load_quantized, load_whole, tmp_path, recwarn):
    add_milora(load_quantized(), target_modules=["v_proj"]).save_pretrained(tmp_path)
    milora.load_milora(load_quantized(), tmp_path)
    assert not [warning for warning in recwarn if warning.category is MiloraWarning]
    if load_quantized().config.quantization_config.load_in_8bit:  # which is near the weights that it rounds
        with pytest.warns(MiloraWarning, match="have float32 weights, and the adapter was made from 8bit ones"):
            milora.load_milora(load_whole(), tmp_path)
    else:
        with pytest.raises(MiloraError, match="the mismatch is"):
            milora.load_milora(load_whole(), tmp_path)


def test_the_reference_of_preference_trainers_is_the_quantized_start(load_quantized):
    model = train_briefly(add_milora(load_quantized(), target_modules=["v_proj"]))
    trained = logits_of(model)
    model.add_adapter("ref", model.peft_config["default"])
    model.set_adapter("ref")
    assert torch.equal(logits_of(model), trained)


def test_factors_are_those_of_the_dequantized_weight(load_quantized):
    """The factors are not those of packed 4-bit values: the dequantized weight has the same principal components."""
    model = add_milora(load_quantized(), components="principal", target_modules=["v_proj"])
    for layer in (part for part in model.modules() if hasattr(part, "lora_A")):
        weight = read_weight(layer)
        U, S, Vh = torch.linalg.svd(weight.double(), full_matrices=False)
        product = layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double()
        assert drift(product, U[:, :8] * S[:8] @ Vh[:8]) < 5e-3  # the factors are rounded to bf16


def test_a_repacked_weight_is_refused(small_model):
    base = AutoModelForCausalLM.from_pretrained(
        small_model, quantization_config=BITS["nf4"], dtype=torch.float32, device_map={"": "cpu"}
    )
    logits_of(base)
    if not any(hasattr(getattr(p, "quant_state", None), "packing_format_for_cpu") for p in base.parameters()):
        pytest.skip("bitsandbytes does not repack on this processor")
    with pytest.raises(MiloraError, match="repacked"):
        add_milora(base)


def test_residual_form_is_refused(load_quantized):
    with pytest.raises(MiloraError, match="needs full precision"):
        add_milora(load_quantized(), form="residual")


def test_a_trainer_that_rounds_the_trained_factors_starts_at_the_base(load_quantized):
    """TRL's SFTTrainer casts A and B of a quantized model to bf16, but not A₀ and B₀."""
    model = add_milora(load_quantized())
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    assert torch.equal(logits_of(model), logits_of(load_quantized()))


@pytest.fixture(scope="module", params=BITS)
def run(request, small_recipe, tmp_path_factory):
    runs = tmp_path_factory.mktemp(request.param)
    changes = [f"model.quantization={request.param}", "adapter.dropout=0", "training.learning_rate=3e-3"]
    done = run_milora("run", small_recipe, *changes, "--runs", runs)
    assert done.returncode == 0, done.stderr
    (path,) = runs.iterdir()
    return open_run(path)


def test_a_run_lowers_the_loss_and_its_export_serves_either_base(run, load_whole):
    before, after = run.read(TrainingRecord).held_out_loss
    assert after < before - 0.1
    factors = load_file(run.adapter / "adapter_model.safetensors")
    assert {tensor.dtype for name, tensor in factors.items() if "initial_base" not in name} == {torch.float32}
    # In bf16 most of AdamW's steps would have been rounded away.
    trained = [tensor for name, tensor in factors.items() if ".lora_A." in name]
    assert all((tensor != tensor.bfloat16()).float().mean() > 0.9 for tensor in trained)
    on_quantized = PeftModel.from_pretrained(load_model(run.recipe.model), locate_export(run.path, "lora"))
    assert drift(logits_of(on_quantized), logits_of(attach_adapter(load_model(run.recipe.model), run.adapter))) < 1e-5
    on_full = PeftModel.from_pretrained(load_whole(), locate_export(run.path, "lora"))
    with on_full.disable_adapter():
        base = logits_of(on_full)
    assert torch.equal(base, logits_of(load_whole()))
    # Not exact, because it was trained on the quantized weights; but closer to the trained model than the base is.
    assert drift(logits_of(on_full), logits_of(on_quantized)) < drift(base, logits_of(on_quantized))
    with pytest.raises(MiloraError, match="round the update away"):
        export_run(run, run.trained, "merged")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("adapter.method=pissa", "pissa needs full-precision weights"),
        ("adapter.form=residual", "milora with form=residual needs"),
        ("model.quantization=fp4", "model.quantization: "),
    ],
)
def test_a_recipe_that_a_quantized_base_does_not_support_is_refused(override, message):
    with pytest.raises(MiloraError, match=message):
        load_recipe("quickstart", ["model.quantization=int8", override])
