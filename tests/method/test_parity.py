"""Factors against references: the definition in float64, PEFT's PiSSA and PEFT's MiCA."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

import milora
from tests.conftest import add_milora, drift

SHAPES = [(40, 40), (64, 24), (24, 64), (1, 9), (9, 1)]


def _weight(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a Gaussian bulk with a strong outlier, as in language models."""
    draw = torch.Generator().manual_seed(sum(shape))
    out, into = shape
    bulk = torch.randn(shape, generator=draw, dtype=torch.float64) / into**0.5
    outlier = torch.randn(out, 1, generator=draw, dtype=torch.float64) @ torch.randn(
        1, into, generator=draw, dtype=torch.float64
    )
    return (bulk + 0.5 * outlier).to(dtype)


def _reference(weight: Tensor, rank: int, components: str) -> tuple[Tensor, Tensor]:
    """Return U_m S_m V_mᵀ and S_m by the definition, in float64."""
    U, S, Vh = torch.linalg.svd(weight.double(), full_matrices=False)
    band = {
        "minor": slice(len(S) - rank, len(S)),
        "principal": slice(0, rank),
        "middle": slice((len(S) - rank) // 2, (len(S) - rank) // 2 + rank),
    }[components]
    return U[:, band] * S[band] @ Vh[band], S[band]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("components", ["minor", "principal", "middle"])
@pytest.mark.parametrize("scaling", [1.0, 2.0, 0.3])
def test_product_and_spectrum_are_the_definitions(shape, components, scaling):
    weight = _weight(shape)
    rank = max(1, min(shape) // 4)
    factors = milora.decompose_weight(weight, rank, components=components, scaling=scaling)
    product, values = _reference(weight, rank, components)
    largest = torch.linalg.matrix_norm(weight.double(), 2)
    assert torch.linalg.norm(scaling * factors.B.double() @ factors.A.double() - product) < 1e-5 * largest
    assert torch.allclose(factors.singular_values.double(), values, atol=1e-5 * largest.item(), rtol=1e-4)
    assert factors.B.shape == (shape[0], rank) and factors.A.shape == (rank, shape[1])
    # Balanced: both factors contain the square root of the values.
    assert torch.allclose((factors.A**2).sum(1), (factors.B**2).sum(0), atol=1e-5)


def test_random_takes_whole_components():
    weight = _weight((40, 30))
    factors = milora.decompose_weight(weight, 7, components="random", seed=5)
    values = torch.linalg.svdvals(weight)
    assert all((values - value).abs().min() < 1e-4 for value in factors.singular_values)
    assert len(set(factors.singular_values.tolist())) == 7


def test_orthonormal_weighting_has_unit_directions():
    factors = milora.decompose_weight(_weight((40, 30)), 5, weighting="orthonormal", scaling=0.5)
    assert torch.allclose(factors.B.T @ factors.B, torch.eye(5), atol=1e-5)
    assert torch.allclose(0.25 * factors.A @ factors.A.T, torch.eye(5), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_dtypes(dtype):
    weight = _weight((30, 20), dtype)
    factors = milora.decompose_weight(weight, 4)
    assert factors.A.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    product, _ = _reference(weight, 4, "minor")
    assert drift(factors.B.double() @ factors.A.double(), product) < 1e-3


def test_principal_residual_is_pefts_pissa(load_small):
    config = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
    pissa = get_peft_model(load_small(), LoraConfig(init_lora_weights="pissa", **config))
    ours = add_milora(load_small(), components="principal", form="residual", **config)
    theirs = dict(pissa.named_modules())
    for name, layer in ours.named_modules():
        if not hasattr(layer, "lora_A"):
            continue
        product, expected = (
            module.lora_B["default"].weight @ module.lora_A["default"].weight for module in (layer, theirs[name])
        )
        # Singular values next to the edge of the band mix up to the certificate's bound, 1e-4.
        assert drift(product, expected) < 1e-3
        assert drift(layer.get_base_layer().weight, theirs[name].get_base_layer().weight) < 1e-4


def test_minor_spans_pefts_mica(load_small):
    config = {"r": 8, "target_modules": ["v_proj", "up_proj", "down_proj"]}
    mica = dict(get_peft_model(load_small(), LoraConfig(init_lora_weights="mica", **config)).named_modules())
    for name, layer in add_milora(load_small(), **config).named_modules():
        if hasattr(layer, "lora_A"):
            ours, _ = torch.linalg.qr(layer.lora_B["default"].weight.detach())
            theirs = mica[name].lora_B["default"].weight
            # All principal angles between the two spans are zero.
            assert torch.linalg.svdvals(ours.T @ theirs).min() > 0.999


REFUSED = [
    (torch.zeros(3), 1, {}, "must be a matrix"),
    (torch.zeros(3, 4), 0, {}, "rank 0 is outside 1 … 3"),
    (torch.zeros(3, 4), 4, {}, "rank 4 is outside 1 … 3"),
    (torch.full((3, 4), float("nan")), 1, {}, "NaN or Inf"),
    (torch.full((3, 4), float("inf")), 1, {}, "NaN or Inf"),
    (torch.zeros(3, 4), 1, {"components": "min"}, "components='min' is unknown"),
    (torch.zeros(3, 4), 1, {"weighting": "none"}, "weighting='none' is unknown"),
]


@pytest.mark.parametrize(("weight", "rank", "options", "message"), REFUSED, ids=[row[3] for row in REFUSED])
def test_refusals(weight, rank, options, message):
    with pytest.raises(milora.MiloraError, match=message):
        milora.decompose_weight(weight, rank, **options)


@pytest.mark.parametrize("rank", [1, 3, 20])
def test_zero_and_deficient_weights_decompose(rank):
    low = torch.randn(30, 2) @ torch.randn(2, 20)
    for weight in (torch.zeros(30, 20), low):
        factors = milora.decompose_weight(weight, rank)
        assert torch.isfinite(factors.A).all() and torch.isfinite(factors.B).all()
