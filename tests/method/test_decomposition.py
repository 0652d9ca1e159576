"""A band of singular components against the float64 decomposition, its edge cases, and its certificate."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from milora.method import decomposition
from milora.method.decomposition import Factors, decompose_stack, decompose_weight
from milora.method.errors import MiloraError
from milora.method.solver import certificate, lanczos
from tests.conftest import drift


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Use one thread: small matrices are slower with more, in particular beside other processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def orthonormal(rows: int, columns: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64)).Q


def with_spectrum(out: int, into: int, values: Tensor, seed: int = 0) -> Tensor:
    k = len(values)
    return (orthonormal(out, k, seed) * values.double()) @ orthonormal(into, k, seed + 1).T


def bulk(out: int, into: int, seed: int = 0, outliers: int = 4) -> Tensor:
    """Return a Marchenko–Pastur bulk with strong outliers, in bf16 like a weight of a language model."""
    generator = torch.Generator().manual_seed(seed)
    W = 0.02 * torch.randn(out, into, generator=generator, dtype=torch.float64)
    edge = 0.02 * (out**0.5 + into**0.5)
    return (W + with_spectrum(out, into, edge * torch.linspace(6, 2, outliers), seed + 1)).bfloat16()


def reference(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.linalg.svd(weight.double(), full_matrices=False)


def energy(weight: Tensor, factors: Factors) -> float:
    """Return ‖W V‖² for the span of A's rows: the energy of the weight in the band."""
    V = torch.linalg.qr(factors.A.double().T).Q
    return (weight.double() @ V).square().sum().item()


def assert_sound(weight: Tensor, rank: int, factors: Factors, scaling: float = 1.0) -> None:
    """Assert that the factors are s⁻¹ U S Vᵀ with orthonormal U and V, and that S is that of W, to float32."""
    largest = reference(weight)[1][0].item()
    product = scaling * factors.B.double() @ factors.A.double()
    assert factors.B.shape == (weight.shape[0], rank)
    assert factors.A.shape == (rank, weight.shape[1])
    assert torch.linalg.svdvals(product)[:rank] == pytest.approx(factors.singular_values.double(), abs=1e-6 * largest)
    assert factors.largest == pytest.approx(largest, rel=1e-2)
    assert factors.certificate is not None


SHAPES = [(448, 448), (640, 448), (448, 640)]
ITERATIVE = [(448, 448, 16), (640, 448, 16), (448, 640, 16), (448, 448, 1), (640, 448, 44)]


@pytest.mark.parametrize(("out", "into", "rank"), ITERATIVE)
@pytest.mark.parametrize("components", ["minor", "principal"])
def test_lanczos_agrees_with_the_float64_decomposition(out, into, rank, components):
    weight = bulk(out, into)
    U, S, Vh = reference(weight)
    band = slice(-rank, None) if components == "minor" else slice(0, rank)
    factors = decompose_weight(weight, rank, components=components, solver="lanczos", scaling=2.0)
    assert factors.certificate.method == "lanczos"
    assert not factors.certificate.fell_back
    assert_sound(weight, rank, factors, scaling=2.0)
    torch.testing.assert_close(factors.singular_values.double(), S[band], rtol=1e-6, atol=1e-7 * S[0].item())
    assert energy(weight, factors) == pytest.approx(S[band].square().sum().item(), rel=1e-6)


@pytest.mark.parametrize("solver", ["lanczos", "gram", "exact"])
@pytest.mark.parametrize(("out", "into"), SHAPES)
@pytest.mark.parametrize("components", ["minor", "principal"])
def test_a_separated_band_is_the_same_subspace_and_the_same_product(solver, out, into, components):
    values = torch.logspace(0, -1, 448)
    values[-12:] = 0.02 * torch.linspace(1, 0.3, 12)
    values[:12] = torch.linspace(9, 3, 12)
    weight = with_spectrum(out, into, values)
    U, S, Vh = reference(weight)
    band = slice(-12, None) if components == "minor" else slice(0, 12)
    factors = decompose_weight(weight.float(), 12, components=components, solver=solver)
    assert factors.certificate.method == solver
    product = (U[:, band] * S[band]) @ Vh[band]
    tolerance = 3e-4 if solver == "exact" else 2e-4
    assert (factors.B.double() @ factors.A.double() - product).norm() <= tolerance * product.norm()
    V = torch.linalg.qr(factors.A.double().T).Q
    assert (V - Vh[band].T @ (Vh[band] @ V)).norm() <= 1e-3


@pytest.mark.parametrize("components", ["minor", "principal", "middle", "random"])
@pytest.mark.parametrize(("out", "into"), [(96, 96), (160, 96), (96, 160)])
@pytest.mark.parametrize("solver", ["auto", "gram", "exact"])
def test_direct_solvers_return_the_requested_components(components, out, into, solver):
    weight = bulk(out, into).float()
    U, S, Vh = reference(weight)
    factors = decompose_weight(weight, 8, components=components, solver=solver, seed=3)
    found = factors.singular_values.double()
    if components == "random":
        # Whichever were drawn, they are 8 different components, in order.
        band = (S[None] - found[:, None]).abs().argmin(1).tolist()
        assert band == sorted(set(band)) and len(band) == 8
    else:
        band = {"minor": range(88, 96), "principal": range(8), "middle": range(44, 52)}[components]
    band = torch.tensor(list(band))
    torch.testing.assert_close(found, S[band], rtol=1e-4, atol=1e-6)
    product = (U[:, band] * S[band]) @ Vh[band]
    assert (factors.B.double() @ factors.A.double() - product).norm() <= 1e-3 * product.norm()


@pytest.mark.parametrize(("position", "first"), [(0, 0), (0.25, 22), (0.5, 44), (0.3, 26), (1.0, 88)])
@pytest.mark.parametrize(("out", "into"), [(96, 96), (96, 160), (160, 96)])
def test_a_position_is_that_of_a_band_in_the_spectrum(out, into, position, first):
    weight = torch.randn(out, into, generator=torch.Generator().manual_seed(5))
    factors = decompose_weight(weight, 8, components=position)
    U, S, Vh = torch.linalg.svd(weight.double(), full_matrices=False)
    band = slice(first, first + 8)
    assert torch.allclose(factors.singular_values.double(), S[band], rtol=1e-5)
    assert drift(factors.B @ factors.A, U[:, band] * S[band] @ Vh[band]) < 1e-4


@pytest.mark.parametrize("name", ["minor", "middle", "principal"])
def test_a_named_band_is_that_of_its_position(name):
    weight = torch.randn(60, 40, generator=torch.Generator().manual_seed(6))
    position = {"minor": 1, "middle": 0.5, "principal": 0}[name]
    named, placed = (decompose_weight(weight, 6, components=components) for components in (name, position))
    assert drift(placed.B @ placed.A, named.B @ named.A) < 1e-5


@pytest.mark.parametrize("position", [-0.1, 1.5, float("nan"), True])
def test_a_position_outside_of_the_spectrum_is_refused(position):
    with pytest.raises(MiloraError, match="is outside 0 … 1"):
        decompose_weight(torch.eye(8), 2, components=position)


def test_random_components_follow_the_seed():
    weight = bulk(96, 96)
    drawn = [decompose_weight(weight, 8, components="random", seed=seed).singular_values for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_random_components_may_be_an_end_of_the_spectrum():
    weight = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    drawn = {decompose_weight(weight, 1, components="random", seed=seed).singular_values.item() for seed in range(9)}
    assert drawn == {3.0, 1.0}


@pytest.mark.parametrize(
    ("out", "into", "rank", "components", "method"),
    [
        (448, 448, 16, "minor", "lanczos"),
        (576, 576, 64, "minor", "lanczos"),
        (1024, 1024, 170, "principal", "lanczos"),
        (1024, 1024, 171, "principal", "exact"),
        (600, 448, 16, "minor", "lanczos"),
        (448, 448, 8, "principal", "lanczos"),
        (448, 600, 200, "minor", "gram"),
        (448, 448, 200, "minor", "exact"),
        (600, 448, 8, "middle", "gram"),
        (48, 448, 8, "minor", "exact"),
    ],
)
def test_auto_picks_by_shape_and_rank(out, into, rank, components, method):
    factors = decompose_weight(bulk(out, into), rank, components=components)
    assert factors.certificate.method == method
    assert not factors.certificate.fell_back


def test_orthonormal_weighting_omits_the_singular_values():
    factors = decompose_weight(bulk(448, 640), 8, weighting="orthonormal", scaling=4.0)
    identity = torch.eye(8)
    torch.testing.assert_close(factors.B.T @ factors.B, identity, atol=1e-5, rtol=0)
    torch.testing.assert_close(16 * factors.A @ factors.A.T, identity, atol=1e-5, rtol=0)


# Edges


@pytest.mark.parametrize(("out", "into"), [(1, 1), (1, 9), (9, 1), (7, 7), (40, 24), (24, 40)])
@pytest.mark.parametrize("components", ["minor", "principal", "middle", "random"])
def test_rank_one_and_full_rank_of_any_shape(out, into, components):
    weight = bulk(out, into, outliers=1).float()
    for rank in (1, min(out, into)):
        factors = decompose_weight(weight, rank, components=components)
        assert_sound(weight, rank, factors)
    torch.testing.assert_close(factors.B @ factors.A, weight, atol=1e-5, rtol=0)


@pytest.mark.parametrize("solver", ["auto", "lanczos", "gram", "exact"])
def test_full_rank_is_the_whole_weight_by_every_solver(solver):
    weight = bulk(120, 100).float()
    factors = decompose_weight(weight, 100, solver=solver)
    torch.testing.assert_close(factors.B @ factors.A, weight, atol=1e-5, rtol=0)
    assert factors.certificate.fell_back == (solver == "lanczos")  # the Krylov space does not fit


@pytest.mark.parametrize("solver", ["auto", "lanczos", "gram"])
@pytest.mark.parametrize(("out", "into"), SHAPES)
@pytest.mark.parametrize("nullity", [3, 60])
def test_null_space_smaller_and_larger_than_the_rank(solver, out, into, nullity):
    values = torch.linspace(1, 0.1, 448)
    values[448 - nullity :] = 0
    weight = with_spectrum(out, into, values).float()
    factors = decompose_weight(weight, 16, solver=solver)
    S = reference(weight)[1]
    assert factors.singular_values.double() == pytest.approx(S[-16:], rel=1e-4, abs=1e-6)
    assert_sound(weight, 16, factors)
    assert not factors.certificate.fell_back


@pytest.mark.parametrize("solver", ["auto", "lanczos", "gram", "exact"])
def test_zero_matrix(solver):
    factors = decompose_weight(torch.zeros(448, 448), 4, solver=solver)
    assert not factors.singular_values.any()
    assert not factors.A.any()
    assert not factors.B.any()
    basis = decompose_weight(torch.zeros(448, 448), 4, solver=solver, weighting="orthonormal")
    torch.testing.assert_close(basis.A @ basis.A.T, torch.eye(4), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("out", "into"), SHAPES)
def test_zero_rows_and_columns(out, into):
    weight = bulk(out, into).float()
    weight[5:10] = 0
    weight[:, 7] = 0
    factors = decompose_weight(weight, 16)
    S = reference(weight)[1]
    assert factors.singular_values.double() == pytest.approx(S[-16:], rel=1e-4, abs=1e-6 * S[0].item())
    assert_sound(weight, 16, factors)


@pytest.mark.parametrize("solver", ["auto", "lanczos", "gram", "exact"])
@pytest.mark.parametrize("copies", [24, 448])
def test_repeated_singular_values(solver, copies):
    """With more copies than columns in a block, a Krylov space finds one block of them, and the probe the others."""
    values = torch.linspace(3, 1, 448)
    values[448 - copies :] = 0.5
    weight = with_spectrum(448, 448, values).float()
    factors = decompose_weight(weight, 20, solver=solver)
    torch.testing.assert_close(factors.singular_values, torch.full((20,), 0.5), atol=1e-5, rtol=0)
    assert_sound(weight, 20, factors)


@pytest.mark.parametrize("solver", ["auto", "lanczos", "gram", "exact"])
@pytest.mark.parametrize(("out", "into"), SHAPES)
def test_condition_1e12_in_float64(solver, out, into):
    weight = with_spectrum(out, into, torch.logspace(0, -12, 448))
    factors = decompose_weight(weight, 8, solver=solver)
    S = reference(weight)[1]
    assert factors.B.dtype == torch.float64
    torch.testing.assert_close(factors.singular_values, S[-8:], rtol=0, atol=1e-14)
    # The square of this condition number exceeds float64: the certificate must have rejected the Gram matrix.
    assert factors.certificate.fell_back or solver in ("auto", "exact", "lanczos")


@pytest.mark.parametrize(("out", "into"), SHAPES)
def test_condition_1e12_in_float32(out, into):
    weight = with_spectrum(out, into, torch.logspace(0, -12, 448)).float()
    factors = decompose_weight(weight, 8)
    assert factors.singular_values.max() <= reference(weight)[1][-8] + 1e-6
    assert_sound(weight, 8, factors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("solver", ["auto", "lanczos"])
def test_every_dtype(dtype, solver):
    weight = bulk(448, 448).to(dtype)
    before = weight.clone()
    factors = decompose_weight(weight, 8, solver=solver)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert factors.A.dtype == factors.B.dtype == factors.singular_values.dtype == wide
    assert energy(weight, factors) == pytest.approx(reference(weight)[1][-8:].square().sum().item(), rel=1e-6)
    assert torch.equal(weight, before)


def test_transposed_storage_gives_the_transposed_factors():
    """Conv1D stores (in, out), and its layer passes a transposed view."""
    weight = bulk(448, 640).float()
    straight = decompose_weight(weight, 8)
    through_view = decompose_weight(weight.T.contiguous().T, 8)
    torch.testing.assert_close(through_view.B @ through_view.A, straight.B @ straight.A, atol=1e-6, rtol=0)
    other_way = decompose_weight(weight.T, 8)
    torch.testing.assert_close((other_way.B @ other_way.A).T, straight.B @ straight.A, atol=1e-6, rtol=0)


def test_a_weight_that_needs_gradients_gives_factors_that_do_not():
    factors = decompose_weight(torch.randn(8, 8, requires_grad=True), 2)
    assert not factors.A.requires_grad
    assert not factors.B.requires_grad


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_nan_and_inf_are_refused(value, dtype):
    weight = torch.ones(8, 8, dtype=dtype)
    weight[3, 4] = value
    with pytest.raises(MiloraError, match="NaN or Inf"):
        decompose_weight(weight, 2)


@pytest.mark.parametrize(
    ("weight", "rank", "options", "message"),
    [
        (torch.ones(4, 6), 5, {}, "rank 5 is outside"),
        (torch.ones(4, 6), 0, {}, "rank 0 is outside"),
        (torch.ones(4), 1, {}, "must be a matrix"),
        (torch.ones(4, 4), 1, {"components": "major"}, "components='major'"),
        (torch.ones(4, 4), 1, {"weighting": "none"}, "weighting='none'"),
        (torch.ones(4, 4), 1, {"solver": "magic"}, "solver='magic'"),
        (torch.ones(4, 4), 1, {"solver": "lanczos", "components": "middle"}, "cannot find components=middle"),
    ],
)
def test_invalid_arguments_are_refused(weight, rank, options, message):
    with pytest.raises(MiloraError, match=message):
        decompose_weight(weight, rank, **options)


# Determinism


@pytest.mark.parametrize(("out", "into"), SHAPES)
@pytest.mark.parametrize("components", ["minor", "principal"])
def test_the_same_bytes_for_the_same_input(out, into, components):
    weight = bulk(out, into)
    torch.manual_seed(1)
    first = decompose_weight(weight, 8, components=components)
    torch.manual_seed(2)
    second = decompose_weight(weight.clone(), 8, components=components)
    assert torch.equal(first.A, second.A)
    assert torch.equal(first.B, second.B)
    assert first == dataclasses.replace(first)
    assert first.certificate == second.certificate


@pytest.mark.parametrize("solver", ["lanczos", "gram", "exact"])
def test_signs_are_canonical_and_the_global_generator_untouched(solver):
    state = torch.get_rng_state()
    B = decompose_weight(bulk(448, 448), 8, solver=solver).B
    assert (B.gather(0, B.abs().argmax(0, keepdim=True)) > 0).all()
    assert torch.equal(state, torch.get_rng_state())


def test_seed_and_threads_change_the_start_and_not_the_band():
    weight = bulk(448, 448)
    threads = torch.get_num_threads()
    try:
        found = []
        for seed, count in ((0, 1), (1, 2)):
            torch.set_num_threads(count)
            found.append(decompose_weight(weight, 8, seed=seed))
    finally:
        torch.set_num_threads(threads)
    products = [factors.B @ factors.A for factors in found]
    assert (products[0] - products[1]).norm() <= 1e-3 * products[0].norm()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("out", "into"), SHAPES)
@pytest.mark.parametrize("components", ["minor", "principal"])
def test_a_gpu_finds_the_band_of_the_cpu(out, into, components):
    weight = bulk(out, into)
    here, there = (decompose_weight(W, 8, components=components) for W in (weight, weight.cuda()))
    assert not there.certificate.fell_back
    assert (here.B @ here.A - (there.B @ there.A).cpu()).norm() <= 1e-3 * here.singular_values.norm()


# Several at once


@pytest.mark.parametrize(("out", "into"), [(160, 96), (96, 160), (96, 96), (640, 448)])
@pytest.mark.parametrize("components", ["minor", "principal", "middle", "random", 0.3])
@pytest.mark.parametrize("weighting", ["singular", "orthonormal"])
def test_a_stack_has_the_factors_of_its_matrices(out, into, components, weighting):
    weights = [bulk(out, into, seed=seed) for seed in range(3)]
    options = {"components": components, "weighting": weighting, "scaling": 2.0, "seed": 1}
    for weight, found in zip(weights, decompose_stack(weights, 8, **options), strict=True):
        alone = decompose_weight(weight.double(), 8, solver="exact", **options)
        assert found.certificate.method == "gram" and not found.certificate.fell_back
        torch.testing.assert_close(found.singular_values.double(), alone.singular_values, rtol=1e-5, atol=1e-7)
        product, exact = found.B.double() @ found.A.double(), alone.B @ alone.A
        assert (product - exact).norm() <= 1e-4 * exact.norm()
        assert found.A.dtype == torch.float32


def test_a_matrix_of_a_stack_whose_band_fails_is_solved_alone(monkeypatch):
    genuine = decomposition.gram_bands

    def gram_bands(W, chosen):
        first, *others = genuine(W, chosen)
        return [dataclasses.replace(first, U=first.U.roll(1, 1)), *others]

    monkeypatch.setattr(decomposition, "gram_bands", gram_bands)
    weights = [bulk(160, 96, seed=seed) for seed in range(2)]
    found = decompose_stack(weights, 8)
    assert [one.certificate.method for one in found] == ["exact", "gram"]
    assert_sound(weights[0], 8, found[0])


def test_a_steep_matrix_in_a_stack_is_as_accurate_as_alone():
    """The Gram matrix loses its minor values: they are computed again from the matrix."""
    steep = with_spectrum(160, 96, torch.logspace(0, -14, 96)).float()
    sound = bulk(160, 96)
    found = decompose_stack([sound, steep, sound], 8, components="minor")
    assert [one.certificate.fell_back for one in found] == [False, False, False]
    assert_sound(steep, 8, found[1])
    assert torch.equal(found[0].A, found[2].A)


@pytest.mark.parametrize("bad", [torch.full((160, 96), torch.nan), torch.zeros(3)])
def test_a_stack_with_a_bad_matrix_is_refused(bad):
    with pytest.raises(MiloraError, match="NaN|matrix"):
        decompose_stack([bulk(160, 96), bad], 8)


# The certificate


def broken(monkeypatch, spoil):
    """Replace the subspace found by Lanczos with `spoil` of it, and turn the refinement off."""
    genuine = lanczos.leading_eigenvectors

    def leading_eigenvectors(apply, start, wanted, **options):
        vectors, images = genuine(apply, start, wanted, **options)
        return (vectors, images) if wanted == 1 else (spoil(vectors), spoil(images))

    monkeypatch.setattr(lanczos, "leading_eigenvectors", leading_eigenvectors)
    monkeypatch.setattr(lanczos, "ROUNDS", 1)


def garbage(vectors: Tensor) -> Tensor:
    return torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0), dtype=vectors.dtype)


@pytest.mark.parametrize("components", ["minor", "principal"])
@pytest.mark.parametrize(("out", "into"), SHAPES)
@pytest.mark.parametrize("fault", ["garbage", "missed"])
def test_a_broken_solver_is_caught_and_replaced(monkeypatch, components, out, into, fault):
    weight = bulk(out, into)
    rank = 8
    if fault == "garbage":
        broken(monkeypatch, garbage)
    else:
        # True singular vectors: the wanted ones without the third, and the next one instead.
        S, Vh = reference(weight)[1:]
        order = torch.arange(448).flip(0) if components == "minor" else torch.arange(448)
        kept = [int(index) for index in (*order[:2], *order[3 : rank + 1])]
        wrong = Vh[kept].T if out >= into else reference(weight)[0][:, kept]
        broken(monkeypatch, lambda vectors: wrong.to(vectors.dtype))
    factors = decompose_weight(weight, rank, components=components, solver="lanczos")
    assert factors.certificate.method == "exact"
    assert factors.certificate.fell_back
    assert ("missed" if fault == "missed" else "lanczos") in factors.certificate.fallback
    S = reference(weight)[1]
    band = S[-rank:] if components == "minor" else S[:rank]
    assert energy(weight, factors) == pytest.approx(band.square().sum().item(), rel=1e-4)


@pytest.mark.parametrize("components", ["minor", "principal"])
@pytest.mark.parametrize(("out", "into"), [(448, 448), (1400, 448)])
@pytest.mark.parametrize("missed", [0, 5, 10])
def test_a_missed_component_is_detected_at_every_position(monkeypatch, components, out, into, missed):
    """The spectrum of a tall weight ends flat: the inverse hardly separates a missed component from the next one."""
    weight = bulk(out, into)
    Vh = reference(weight)[2]
    order = torch.arange(448).flip(0) if components == "minor" else torch.arange(448)
    kept = [int(index) for place, index in enumerate(order[:17]) if place != missed]
    broken(monkeypatch, lambda vectors: Vh[kept].T.to(vectors.dtype))
    for seed in range(3):
        factors = decompose_weight(weight, 16, components=components, solver="lanczos", seed=seed)
        assert "missed" in factors.certificate.fallback


def test_a_missed_component_is_repaired_without_falling_back(monkeypatch):
    weight = bulk(448, 448)
    wrong = reference(weight)[2][-9:-1].T
    broken(monkeypatch, lambda vectors: wrong)
    monkeypatch.setattr(lanczos, "ROUNDS", 2)
    factors = decompose_weight(weight, 8, solver="lanczos")
    assert factors.certificate.method == "lanczos"
    assert energy(weight, factors) == pytest.approx(reference(weight)[1][-8:].square().sum().item(), rel=1e-6)


@pytest.mark.parametrize("spoil", ["U", "V", "S", "nan", "rotated"])
def test_a_wrong_band_of_any_solver_is_rejected(monkeypatch, spoil):
    genuine = decomposition.gram_bands

    def gram_bands(W, chosen):
        return [spoiled(band, chosen) for band in genuine(W, chosen)]

    def spoiled(band, chosen):
        match spoil:
            case "U":
                return dataclasses.replace(band, U=band.U.roll(1, 1))
            case "V":
                return dataclasses.replace(band, V=band.V.roll(1, 1))
            case "S":
                return dataclasses.replace(band, S=band.S * 1.01)
            case "nan":
                return dataclasses.replace(band, U=band.U * float("nan"))
            case "rotated":
                turn = orthonormal(len(chosen), len(chosen), 5)
                return dataclasses.replace(band, U=band.U @ turn, V=band.V @ turn)

    monkeypatch.setattr(decomposition, "gram_bands", gram_bands)
    certificate_ = decompose_weight(bulk(120, 100), 24, solver="gram").certificate
    assert certificate_.method == "exact"
    assert certificate_.fallback.startswith("gram: ")


def test_a_decomposition_that_does_not_converge_is_replaced(monkeypatch):
    def lanczos_bands(*_):
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(decomposition, "lanczos_bands", lanczos_bands)
    found = decompose_weight(bulk(448, 448), 8).certificate
    assert found.method == "exact"
    assert found.fallback == "lanczos on cpu: did not converge"


def test_nothing_uncertified_is_returned(monkeypatch):
    monkeypatch.setattr(decomposition, "objection", lambda *_: "refused")
    with pytest.raises(MiloraError, match="refused; refused; refused"):
        decompose_weight(bulk(448, 448), 8)


@pytest.mark.parametrize("rank", [1, 8, 40])
def test_the_certificate_is_measured_correctly(rank):
    W = bulk(160, 120).double()
    U, S, Vh = reference(W)
    generator = torch.Generator().manual_seed(0)
    V = Vh[-rank:].T + 1e-3 * torch.randn(120, rank, generator=generator, dtype=torch.float64)
    band = certificate.Band(U[:, -rank:], S[-rank:], V, S[0].item(), None)
    found = certificate.certify(W, band, "exact")
    residual = max((W @ V - band.U * band.S).norm(), (W.T @ band.U - V * band.S).norm()).item()
    # Above rank 8 it is estimated from 8 random combinations, to within a factor.
    assert found.residual == pytest.approx(residual / (S[0].item() * rank**0.5), rel=1e-6 if rank <= 16 else 0.5)
    assert found.relative_residual == pytest.approx(residual / S[-rank:].norm().item(), rel=1e-6 if rank <= 16 else 0.5)
    deviation = (V.T @ V - torch.eye(rank)).norm().item() / rank**0.5
    assert found.orthonormality == pytest.approx(deviation, rel=1e-6 if rank <= 16 else 0.5)


SPECTRA = {
    "flat": lambda k: torch.ones(k),
    "linear": lambda k: torch.linspace(1, 0.01, k),
    "decaying": lambda k: torch.logspace(0, -5, k),
    "outliers": lambda k: torch.cat([torch.full((2,), 50.0), torch.linspace(1, 0.2, k - 2)]),
    "null": lambda k: torch.cat([torch.linspace(1, 0.5, k - k // 3), torch.zeros(k // 3)]),
    "steps": lambda k: torch.tensor([float(2 - i // (k // 4 + 1) / 2) for i in range(k)]),
}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_every_result_matches_its_certificate(data):
    """For every input, the values of the certificate are confirmed by measuring them again from the factors alone."""
    out, into = (data.draw(st.integers(90, 220), label=side) for side in ("out", "into"))
    k = min(out, into)
    components = data.draw(st.sampled_from(["minor", "principal", "middle", "random"]), label="components")
    ends = components in ("minor", "principal")
    solver = data.draw(st.sampled_from(["auto", "gram", "exact"] + ["lanczos"] * 3 * ends), label="solver")
    rank = data.draw(st.one_of(st.integers(1, 16), st.integers(1, k)), label="rank")
    dtype = data.draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]), label="dtype")
    kind = data.draw(st.sampled_from(sorted(SPECTRA)), label="spectrum")
    weight = with_spectrum(out, into, SPECTRA[kind](k), seed=data.draw(st.integers(0, 99), label="seed")).to(dtype)

    factors = decompose_weight(weight, rank, components=components, solver=solver, weighting="orthonormal")

    found = factors.certificate
    W, U, V, S = weight.double(), factors.B.double(), factors.A.double().T, factors.singular_values.double()
    largest, size = reference(weight)[1][0].item(), S.norm().item()
    rounding = 1e-6 * largest * rank**0.5
    residual = max((W @ V - U * S).norm(), (W.T @ U - V * S).norm()).item()
    assert residual <= 2 * found.residual * largest * rank**0.5 + rounding
    assert residual <= max(1e-3 * size, 1e-5 * largest * rank**0.5) + rounding
    for X in (U, V):
        assert (X.T @ X - torch.eye(rank)).norm() <= 1e-5 * rank**0.5
    if ends:
        # No component was missed: the band is the requested end of the spectrum.
        spectrum = reference(weight)[1]
        truth = spectrum[k - rank :] if components == "minor" else spectrum[:rank]
        torch.testing.assert_close(S, truth, rtol=2e-4, atol=5e-6 * largest)
        assert (found.beyond is None) == (rank == k)
