"""Devices and storage that are not here, emulated: Apple's GPUs have no float64, other quantizers hide the weight."""

import tempfile

import accelerate
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.gptq import GPTQLoraLinear
from torch import nn
from torch.overrides import TorchFunctionMode

import milora
from milora import MiloraError, decompose_weight
from tests.conftest import add_milora, drift, logits_of, make_llama, train_briefly


class Apple(torch.Tensor):
    """A tensor that says it is on an Apple GPU."""

    device = property(lambda self: torch.device("mps"))
    is_cpu = property(lambda self: False)


class AppleGPU(TorchFunctionMode):
    """Results of Apple's tensors are Apple's, and float64 is an error; only `.cpu()` leaves the device."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.cpu:
            return args[0].as_subclass(torch.Tensor)
        if func is torch.Tensor.to and torch.device("mps") in args:
            dtype = next((one for one in args if isinstance(one, torch.dtype)), args[0].dtype)
            return self.check(args[0].to(dtype).as_subclass(Apple))
        found = func(*args, **kwargs)
        return self.check(found) if any(issubclass(kind, Apple) for kind in types) else found

    def check(self, found):
        if isinstance(found, Apple) and found.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return found


def spectrum(rows, columns):
    generator = torch.Generator().manual_seed(1)
    U, V = (torch.linalg.qr(torch.randn(size, columns, generator=generator))[0] for size in (rows, columns))
    return (U * torch.linspace(3, 0.1, columns)) @ V.T


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (32, 32), (600, 480)], ids=str)
@pytest.mark.parametrize("solver", ["auto", "exact", "gram", "lanczos"])
def test_an_apple_gpu_gets_the_factors_of_the_cpu(shape, solver):
    weight = spectrum(*shape) if shape[0] >= shape[1] else spectrum(*shape[::-1]).T.contiguous()
    expected = decompose_weight(weight, 4, solver=solver)
    with AppleGPU():
        found = decompose_weight(weight.as_subclass(Apple), 4, solver=solver)
    assert isinstance(found.A, Apple) and isinstance(found.B, Apple)
    assert torch.equal(found.A.as_subclass(torch.Tensor), expected.A)
    assert torch.equal(found.B.as_subclass(torch.Tensor), expected.B)
    assert not found.certificate.fell_back or expected.certificate.fell_back


def offload(model, where, folder):
    if where == "disk":
        return accelerate.disk_offload(model, tempfile.mkdtemp(dir=folder), execution_device=torch.device("cpu"))
    return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_offloaded_layers_are_loaded_one_at_a_time(where, tmp_path):
    base = logits_of(make_llama())
    expected = add_milora(make_llama())
    model = add_milora(offload(make_llama(), where, tmp_path))
    factors = {name: part for name, part in expected.state_dict().items() if "lora_" in name}
    found = model.state_dict()
    assert factors and all(torch.equal(found[name], part) for name, part in factors.items())
    assert all(part.is_meta for name, part in model.named_parameters() if "lora_" not in name)
    assert torch.equal(logits_of(model), base)
    train_briefly(expected).save_pretrained(tmp_path / "adapter")
    loaded = milora.load_milora(offload(make_llama(), where, tmp_path), tmp_path / "adapter")
    assert drift(logits_of(loaded), logits_of(expected)) <= 1e-6
    milora.save_milora_as_lora(tmp_path / "lora", loaded)
    other = make_llama()
    other.lm_head.weight.data.mul_(2)
    other.model.layers[0].mlp.up_proj.weight.data.add_(1e-3)
    with pytest.raises(MiloraError, match="not of this base model"):
        milora.load_milora(offload(other, where, tmp_path), tmp_path / "adapter")


def test_the_residual_form_refuses_offloaded_layers(tmp_path):
    with pytest.raises(MiloraError, match="the weight is offloaded"):
        add_milora(offload(make_llama(), "memory", tmp_path), form="residual")


def test_weights_that_are_not_loaded_are_refused():
    with pytest.raises(MiloraError, match="on the meta device"):
        add_milora(make_llama().to("meta"))


class FP8Linear(nn.Linear):
    """As in transformers: a weight whose numbers mean nothing without their scales."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.weight = nn.Parameter(linear.weight.data.to(torch.float8_e4m3fn), requires_grad=False)


@pytest.mark.parametrize("config", [{"quant_method": "fp8"}, None], ids=str)
def test_the_layers_of_another_quantizer_are_named(config):
    model = make_llama()
    for layer in model.model.layers:
        layer.self_attn.q_proj = FP8Linear(layer.self_attn.q_proj)
    if config:
        model.config.quantization_config = config
    with pytest.raises(MiloraError, match=rf"quantized by {'fp8 .' if config else ''}FP8Linear.*BitsAndBytesConfig"):
        add_milora(model, target_modules=["q_proj", "v_proj"])


@pytest.mark.filterwarnings("ignore:Unsupported layer type")  # PEFT's, of the emulation
def test_layers_without_a_weight_are_named():
    """GPTQ, AWQ and HQQ store integers under other names."""
    model = get_peft_model(make_llama(), LoraConfig(r=4, target_modules=["q_proj"]))
    for layer in model.base_model.model.model.layers:
        packed = nn.Module()
        packed.in_features, packed.out_features = 64, 64
        packed.register_buffer("qweight", torch.ones(8, 64, dtype=torch.int32))
        layer.self_attn.q_proj = GPTQLoraLinear(packed, "default", config=model.peft_config["default"], r=4)
    with pytest.raises(MiloraError, match="q_proj: the weight is quantized by"):
        milora.initialize_lora_milora_weights(model)
