"""Devices and storage that are not here, emulated: Apple's GPUs have no float64, other quantizers hide the weight."""

import pytest
import torch
from torch.overrides import TorchFunctionMode

from milora import decompose_weight


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
