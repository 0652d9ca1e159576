"""The invariants on a 4-bit and an 8-bit base (bitsandbytes, CPU)."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import milora
from milora import MiloraError
from milora.method.variant import read_weight
from tests.conftest import add_milora, drift, logits_of, train_briefly

BITS = {
    "nf4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32),
    "int8": BitsAndBytesConfig(load_in_8bit=True),
}
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(params=BITS)
def load_quantised(request, small_model):
    config = BITS[request.param]
    return lambda: AutoModelForCausalLM.from_pretrained(
        small_model, quantization_config=config, dtype=torch.float32, device_map={"": "cpu"}
    )


def test_step_zero_is_the_quantised_base(load_quantised):
    assert torch.equal(logits_of(add_milora(load_quantised())), logits_of(load_quantised()))


def test_quantised_base_trains_and_reloads(load_quantised, tmp_path):
    model = train_briefly(add_milora(load_quantised()))
    trained = logits_of(model)
    assert drift(trained, logits_of(load_quantised())) > 1e-2
    with model.disable_adapter():
        assert torch.equal(logits_of(model), logits_of(load_quantised()))
    model.save_pretrained(tmp_path)
    assert drift(logits_of(milora.load_milora(load_quantised(), tmp_path)), trained) < 1e-5
    with pytest.raises(MiloraError, match="quantised"):
        model.merge_adapter()


def test_factors_are_those_of_the_dequantised_weight(load_quantised):
    """Not of packed nibbles: the quantised weight is near the real one, and so are its principal components."""
    model = add_milora(load_quantised(), components="principal", target_modules=["v_proj"])
    for layer in (part for part in model.modules() if hasattr(part, "lora_A")):
        weight = read_weight(layer)
        U, S, Vh = torch.linalg.svd(weight.double(), full_matrices=False)
        product = layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double()
        assert drift(product, U[:, :8] * S[:8] @ Vh[:8]) < 1e-4


def test_a_repacked_weight_is_refused(small_model):
    base = AutoModelForCausalLM.from_pretrained(
        small_model, quantization_config=BITS["nf4"], dtype=torch.float32, device_map={"": "cpu"}
    )
    logits_of(base)
    if not any(hasattr(getattr(p, "quant_state", None), "packing_format_for_cpu") for p in base.parameters()):
        pytest.skip("bitsandbytes does not repack on this processor")
    with pytest.raises(MiloraError, match="repacked"):
        add_milora(base)


def test_residual_form_is_refused(load_quantised):
    with pytest.raises(MiloraError, match="needs full precision"):
        add_milora(load_quantised(), base="residual")
