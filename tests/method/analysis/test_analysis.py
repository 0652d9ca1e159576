"""Every figure of an inspection against a dense computation in float64."""

from itertools import combinations

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from milora.method.analysis.activity import measure_activity
from milora.method.analysis.matrices import find_matrices, find_updates, group_by_type, layer_of
from milora.method.analysis.spectrum import Spectrum, find_spectrum, measure_weight
from milora.method.analysis.update import measure_update
from milora.method.analysis.watch import watch_update
from milora.method.errors import MiloraError
from tests.architectures import ARCHITECTURES
from tests.conftest import add_milora, make_gpt2, make_llama, make_qwen, some_tokens, train_briefly

SHAPES = [(40, 24), (24, 40), (32, 32)]
RANK = 3


def _matrix(rows, columns, seed):
    """A spectrum that falls over two orders of magnitude, and no two values alike."""
    generator = torch.Generator().manual_seed(seed)
    smaller = min(rows, columns)
    U, V = (torch.linalg.qr(torch.randn(n, smaller, generator=generator).double()).Q for n in (rows, columns))
    return (U * torch.logspace(0.5, -1.5, smaller, dtype=torch.float64) @ V.T).float()


def _update(rows, columns, rank=2 * RANK):
    generator = torch.Generator().manual_seed(7)
    return torch.randn(rows, rank, generator=generator), 0.1 * torch.randn(rank, columns, generator=generator)


def _ends(W):
    """The same spectrum from its ends alone, as of a weight that is too large to decompose completely."""
    whole = find_spectrum(W, RANK)
    place = [*range(RANK), *range(-RANK, 0)]
    return Spectrum(whole.U[:, place], whole.S[place], whole.V[:, place], RANK, False, whole.norm)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_figures_of_a_weight(shape):
    W = _matrix(*shape, 1)
    found, dense = measure_weight(W, find_spectrum(W, RANK)), W.double().numpy()
    U, S, Vh = np.linalg.svd(dense, full_matrices=False)
    minor = U[:, -RANK:] * S[-RANK:] @ Vh[-RANK:]
    assert found.values == pytest.approx(S, rel=1e-9) and found.whole and found.shape == shape
    assert found.norm == pytest.approx(np.linalg.norm(dense), rel=1e-12)
    assert found.stable_rank == pytest.approx((S**2).sum() / S[0] ** 2, rel=1e-9)
    assert found.condition == pytest.approx(S[0] / S[-1], rel=1e-9)
    assert found.minor_energy == pytest.approx(np.linalg.norm(minor) ** 2 / np.linalg.norm(dense) ** 2, rel=1e-9)
    assert found.principal_energy == pytest.approx((S[:RANK] ** 2).sum() / (S**2).sum(), rel=1e-9)
    assert found.in_own == pytest.approx(np.linalg.norm(U[:, :RANK].T @ dense @ Vh[:RANK].T), rel=1e-9)
    for dtype in (torch.bfloat16, torch.float16):
        exact = torch.tensor(dense - minor)
        lost = (exact.to(dtype).double() - exact).norm() / np.linalg.norm(minor)
        assert found.rounding[str(dtype)[6:]] == pytest.approx(lost.item(), rel=1e-6)


def test_random_directions_are_those_of_many_draws():
    W = _matrix(40, 24, 1)
    generator = np.random.default_rng(0)
    draws = []
    for _ in range(3000):
        U, V = (np.linalg.qr(generator.normal(size=(n, RANK)))[0] for n in W.shape)
        draws.append(np.linalg.norm(U.T @ W.double().numpy() @ V) ** 2)
    assert measure_weight(W, find_spectrum(W, RANK)).in_random == pytest.approx(np.mean(draws) ** 0.5, rel=0.02)


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "ends"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_figures_of_an_update(shape, whole):
    W, (up, down) = _matrix(*shape, 1), _update(*shape)
    found = measure_update(W, find_spectrum(W, RANK) if whole else _ends(W), up, down)
    weight, change = W.double().numpy(), (up.double() @ down.double()).numpy()
    U, S, Vh = np.linalg.svd(change, full_matrices=False)
    own_U, own_S, own_Vh = np.linalg.svd(weight, full_matrices=False)
    U, V = U[:, :RANK], Vh[:RANK].T
    assert found.norm == pytest.approx(np.linalg.norm(change), rel=1e-9)
    p = S[: 2 * RANK] / S.sum()
    assert found.effective_rank == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-6)
    # The quantities of the paper's table 7.
    assert found.in_update == pytest.approx(np.linalg.norm(U.T @ weight @ V), rel=1e-7)
    assert found.update_in_own == pytest.approx(np.linalg.norm(U.T @ change @ V), rel=1e-9)
    assert found.amplification == pytest.approx(
        np.linalg.norm(U.T @ change @ V) / np.linalg.norm(U.T @ weight @ V), rel=1e-7
    )
    # Those of figure 2, the random ones over every choice of r components.
    phi = [np.linalg.norm(U.T @ chosen) ** 2 / RANK for chosen in (own_U[:, :RANK], own_U[:, -RANK:])]
    assert (found.similarity.top, found.similarity.bottom) == pytest.approx(phi, rel=1e-7)
    few = 200 if len(own_S) > 24 else None
    choices = list(combinations(range(len(own_S)), RANK))[:few]
    mean = np.mean([np.linalg.norm(U.T @ own_U[:, list(chosen)]) ** 2 / RANK for chosen in choices])
    if few is None:
        assert found.similarity.random == pytest.approx(mean, rel=1e-7)
    outputs = np.linalg.norm(own_U.T @ change, axis=1) ** 2 / np.linalg.norm(change) ** 2
    inputs = np.linalg.norm(change @ own_Vh.T, axis=0) ** 2 / np.linalg.norm(change) ** 2
    shown = slice(None) if whole else [*range(RANK), *range(-RANK, 0)]
    assert (found.outputs, found.inputs) == (pytest.approx(outputs[shown], rel=1e-6), pytest.approx(inputs[shown]))
    between = (0, 0) if whole else (outputs[RANK:-RANK].sum(), inputs[RANK:-RANK].sum())
    assert found.between == pytest.approx(between, abs=1e-12, rel=1e-9)
    tuned = np.linalg.svd(weight + change, full_matrices=False)[0][:, :10]
    intruders = (np.abs(own_U.T @ tuned).max(0) < 0.5).sum()
    assert found.intruders == (intruders if whole else None) and 0 < intruders < 10


def test_the_ends_of_a_large_weight_are_those_of_its_whole_decomposition(monkeypatch):
    W = _matrix(600, 500, 2)
    whole = find_spectrum(W, 8)
    monkeypatch.setattr("milora.method.analysis.spectrum.WHOLE_UP_TO", 100)
    ends = find_spectrum(W, 8)
    assert whole.whole and not ends.whole and ends.S.shape == (16,)
    assert find_spectrum(W, 8, exact=True).whole
    up, down = _update(*W.shape)
    sure, found = (measure_update(W, spectrum, up, down) for spectrum in (whole, ends))
    assert found.similarity.random == pytest.approx(sure.similarity.random, rel=1e-9)
    for end in ("top", "bottom"):
        assert getattr(found.similarity, end) == pytest.approx(getattr(sure.similarity, end), rel=1e-3)
    assert found.outputs == pytest.approx([*sure.outputs[:8], *sure.outputs[-8:]], rel=1e-3, abs=1e-6)
    assert found.between[0] == pytest.approx(sum(sure.outputs[8:-8]), rel=1e-4)
    figures = measure_weight(W, ends)
    assert figures.condition == pytest.approx(measure_weight(W, whole).condition, rel=1e-4)
    assert not figures.whole and len(figures.values) == 16


def test_an_update_of_nothing_has_no_direction():
    W = _matrix(40, 24, 1)
    found = measure_update(W, find_spectrum(W, RANK), torch.zeros(40, 4), torch.ones(4, 24))
    assert (found.rank, found.norm, found.amplification, found.similarity, found.intruders) == (0, 0, 0, None, 0)


def test_an_update_of_lower_rank_has_fewer_directions():
    W, (up, down) = _matrix(40, 24, 1), _update(40, 24, 1)
    found = measure_update(W, find_spectrum(W, RANK), up, down)
    direction = torch.linalg.svd(up.double() @ down.double())[0][:, 0]
    U = torch.linalg.svd(W.double(), full_matrices=False)[0]
    assert found.rank == 1 and found.effective_rank == pytest.approx(1)
    assert found.similarity.top == pytest.approx((direction @ U[:, :RANK]).square().sum().item(), rel=1e-7)


def _tuned(make):
    """The same each time: in place of a copy, of which the hooks would be shared."""
    torch.manual_seed(0)
    return train_briefly(add_milora(make(), r=4, lora_alpha=8, fan_in_fan_out=make is make_gpt2))


@pytest.mark.parametrize("make", [make_gpt2, make_qwen])
def test_the_updates_of_a_model_are_those_of_its_merged_weights(make):
    """Conv1D stores its weights transposed; the biases are no part of W h."""
    model = _tuned(make)
    matrices, (updates, others) = find_matrices(model), find_updates(model)
    before = {name: matrix.read().clone() for name, matrix in matrices.items()}
    assert matrices.keys() == updates.keys() and not others
    tokens, inputs = some_tokens(model), {}
    base = model.unload()
    for name in matrices:
        keep = lambda module, got, _, name=name: inputs.__setitem__(name, got[0].detach())  # noqa: E731
        base.get_submodule(name).register_forward_hook(keep)
    activity = measure_activity(base, {"one": updates}, [tokens])["one"]
    merged = _tuned(make).merge_and_unload()
    for name, update in updates.items():
        change, h = update.up.double() @ update.down.double(), inputs[name].double()
        ratio = (h @ change.T).square().sum() / (h @ before[name].double().T).square().sum()
        assert activity[name] == pytest.approx(ratio.item(), rel=1e-4)
        after = merged.get_submodule(name).weight.double()
        assert torch.allclose((after.T if make is make_gpt2 else after) - before[name], change, atol=1e-6)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:The following .*_pattern keys did not match")
def test_experts_are_inspected_one_by_one():
    model = ARCHITECTURES["gpt_oss"].build()
    config = {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
    model = get_peft_model(model, LoraConfig(r=2, **config))
    matrices, (updates, _) = find_matrices(model), find_updates(model)
    assert matrices.keys() == updates.keys() and len(matrices) == 2 * (1 + 4 + 4)
    kinds = group_by_type(matrices)
    assert {kind: len(names) for kind, names in kinds.items()} == {"q_proj": 2, "down_proj": 8, "gate_up_proj": 8}
    assert {layer_of(name) for name in matrices} == {0, 1}
    for name, matrix in matrices.items():
        assert matrix.read().shape == matrix.shape == (len(updates[name].up), updates[name].down.shape[1])
        assert (matrix.module is None) == name.endswith("]")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LoraConfig(r=2, target_modules=["q_proj"], use_dora=True), "by more than a product of two factors"),
        (LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa"), "replaces the base's weights"),
        (LoraConfig(r=2, target_modules=["embed_tokens"]), "not products of two factors"),
    ],
    ids=["dora", "pissa", "embeddings"],
)
def test_what_is_not_a_product_of_factors_is_refused(config, message):
    with pytest.raises(MiloraError, match=message):
        find_updates(get_peft_model(make_llama(), config))


def test_a_damaged_weight_is_refused():
    W = _matrix(40, 24, 1)
    W[3, 3] = float("nan")
    with pytest.raises(MiloraError, match="NaN"):
        find_spectrum(W, RANK)


@pytest.mark.parametrize("start", ["lora", "milora", "fresh"])
def test_what_is_watched_during_training_is_what_is_measured_afterwards(start):
    model = make_llama()
    if start == "milora":
        model = train_briefly(add_milora(model, r=4, lora_alpha=8, rank_pattern={"q_proj": 2}))
    else:
        model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
        model = model if start == "fresh" else train_briefly(model)
    found = watch_update(model)
    updates, _ = find_updates(model)
    dense = [torch.linalg.svdvals(update.up.double() @ update.down.double()).numpy() for update in updates.values()]
    assert found["update_norm"] == pytest.approx(sum((S**2).sum() for S in dense) ** 0.5, rel=1e-5)
    shares = [S / S.sum() for S in dense if S.any()]
    ranks = [np.exp(-sum(p * np.log(p) for p in share if p > 0)) for share in shares]
    assert found["update_effective_rank"] == pytest.approx(np.mean(ranks) if ranks else 0, rel=1e-3)


def test_dora_is_not_watched():
    assert watch_update(get_peft_model(make_llama(), LoraConfig(r=2, target_modules=["q_proj"], use_dora=True))) == {}
