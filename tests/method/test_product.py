"""The product of an input with an update and its gradients, against autograd on the formula."""

import pytest
import torch
from torch import Tensor

from milora.method.variant.product import add_update

OUT, IN, RANK = 7, 5, 2


def draw(*lead: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"result": (*lead, OUT), "x": (*lead, IN), "A": (RANK, IN), "B": (OUT, RANK)}
    drawn = {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}
    initial = {f"{name}0": torch.randn(shapes[name], generator=generator, dtype=dtype) for name in "AB"}
    return {name: tensor.requires_grad_() for name, tensor in drawn.items()} | initial


def formula(result, x, A, B, A0, B0, scaling):
    return result + scaling * (x @ A.T @ B.T - x @ A0.T @ B0.T)


@pytest.mark.parametrize("lead", [(3,), (2, 3), (1, 2, 3)])
def test_output_and_gradients_are_those_of_the_formula(lead):
    given = draw(*lead)
    outputs = [compute(**given, scaling=0.3) for compute in (add_update, formula)]
    weights = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    trained = [given[name] for name in ("result", "x", "A", "B")]
    ours, wanted = (torch.autograd.grad((output * weights).sum(), trained) for output in outputs)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-12, atol=1e-12)
    for gradient, truth in zip(ours, wanted, strict=True):
        torch.testing.assert_close(gradient, truth, rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_finite_differences():
    given = draw(4)
    trained = [given[name] for name in ("result", "x", "A", "B")]
    assert torch.autograd.gradcheck(lambda *t: add_update(*t, given["A0"], given["B0"], 2.0), trained)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_output_is_bit_for_bit_the_base_layers_at_the_start(dtype, autocast):
    given = draw(3, dtype=torch.float32) | {"result": torch.randn(3, OUT, dtype=dtype)}
    given |= {"A": given["A0"].clone().requires_grad_(), "B": given["B0"].clone().requires_grad_()}
    with torch.autocast("cpu", dtype if dtype != torch.float32 else torch.bfloat16, enabled=autocast):
        total = add_update(**given, scaling=0.7)
    assert torch.equal(total, given["result"].to(total.dtype))
    total.sum().backward()
    assert given["A"].grad.dtype == torch.float32 and given["A"].grad.any()


def test_a_layer_whose_input_needs_no_gradient_trains():
    given = draw(3)
    given |= {"x": given["x"].detach(), "result": given["result"].detach()}
    add_update(**given, scaling=1.0).sum().backward()
    assert given["A"].grad.any() and given["B"].grad.any()


def test_small_updates_keep_their_accuracy_in_bfloat16():
    given = {name: tensor.detach().float() for name, tensor in draw(64).items()}
    given |= {"A": given["A0"] * (1 + 1e-5), "B": given["B0"] * (1 + 1e-5), "result": torch.zeros(64, OUT)}
    exact = formula(**{name: tensor.double() for name, tensor in given.items()}, scaling=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = add_update(**given, scaling=1.0)
    assert (rounded - exact).norm() <= 1e-2 * exact.norm()


def test_the_output_can_be_changed_in_place():
    given = draw(2, 3)
    total = add_update(**given, scaling=1.0)
    total += 1
    total.sum().backward()
    assert given["B"].grad.any()
