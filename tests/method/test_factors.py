"""Many weights at once: the same factors for any number of jobs and processes; a difference is an error.

Broken by: factors or signs that depend on the process, an error on one process that the others wait for.
"""

import sys
import traceback
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

import milora
from milora import MiloraError
from milora.method.factors import assign_ranks
from tests.conftest import add_milora, logits_of, make_qwen
from tests.process import CONTEXT


def _prepare(model: PreTrainedModel) -> PeftModel:
    return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))


def _same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_jobs_give_the_same_factors(load_small):
    torch.set_num_threads(1)
    alone = milora.get_milora_state_dict(_prepare(load_small()))
    assert _same(alone, milora.get_milora_state_dict(_prepare(load_small()), jobs=2))


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_shows_the_progress(capsys, monkeypatch, is_terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    milora.get_milora_state_dict(_prepare(make_qwen()), jobs=2)
    assert ("decomposing: 100%" in capsys.readouterr().err) == is_terminal


def test_jobs_below_one_are_refused(load_small):
    with pytest.raises(MiloraError, match="jobs=0"):
        milora.get_milora_state_dict(_prepare(load_small()), jobs=0)


def test_every_layer_reports_its_certificate(load_small):
    report = milora.initialize_lora_milora_weights(_prepare(load_small()))
    for layer in report.layers.values():
        assert layer.certificate is not None and layer.certificate.residual < 1e-5


def all_processes_get_the_same_factors(rank: int, folder: Path) -> None:
    base = make_qwen()
    expected = logits_of(base)
    torch.manual_seed(rank)  # LoRA draws A at random
    model = _prepare(base)
    report = milora.initialize_lora_milora_weights(model)
    assert len(report.layers) == 14 and all(layer.certificate for layer in report.layers.values())
    assert torch.equal(logits_of(model), expected)
    save_file({name: p for name, p in model.state_dict().items() if "lora_" in name}, folder / f"{rank}.safetensors")


def an_error_on_one_process_is_raised_on_all(rank: int, folder: Path) -> None:
    model = _prepare(make_qwen())
    model.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight.data[0, 0] = float("nan")
    with pytest.raises(MiloraError, match="NaN or Inf"):
        milora.initialize_lora_milora_weights(model)


def weights_on_one_process_only_are_refused(rank: int, folder: Path) -> None:
    model = _prepare(make_qwen())
    if rank == 1:  # as fsdp_cpu_ram_efficient_loading leaves it
        for parameter in model.get_base_model().parameters():
            parameter.data.zero_()
    with pytest.raises(
        MiloraError, match="the weight on process 1 differs from that on process 0.*ram_efficient_loading"
    ):
        milora.initialize_lora_milora_weights(model)


def a_sharded_model_is_refused(rank: int, folder: Path) -> None:
    mesh = init_device_mesh("cpu", (2,))
    model = _prepare(make_qwen())
    fully_shard(model, mesh=mesh)
    with pytest.raises(MiloraError, match="already sharded across processes"):
        milora.initialize_lora_milora_weights(model)
    model = add_milora(make_qwen(), r=4)
    fully_shard(model, mesh=mesh)
    with pytest.raises(MiloraError, match="the adapter is sharded"):
        milora.save_milora_as_lora(folder / "out", model)


PASSED = "passed"
CHECKS = [
    all_processes_get_the_same_factors,
    an_error_on_one_process_is_raised_on_all,
    weights_on_one_process_only_are_refused,
    a_sharded_model_is_refused,
]


def _check(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for check in CHECKS:
        outcome = folder / f"{check.__name__}-{rank}"
        try:
            check(rank, folder)
            outcome.write_text(PASSED)
        except BaseException:
            outcome.write_text(traceback.format_exc())
            raise
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def checked(tmp_path_factory) -> Path:
    """The folder with the outcomes of two processes that each ran all checks."""
    folder = tmp_path_factory.mktemp("checked")
    processes = [CONTEXT.Process(target=_check, args=(rank, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
    return folder


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_two_processes(checked, check):
    for rank in range(2):
        assert (checked / f"{check.__name__}-{rank}").read_text() == PASSED


def test_the_factors_are_those_of_one_process(checked):
    first, second = (load_file(checked / f"{rank}.safetensors") for rank in range(2))
    alone = add_milora(make_qwen(), r=4).state_dict()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]) and torch.equal(tensor, alone[name])


def test_shards_have_equal_cost():
    costs = {f"layer {index}": cost for index, cost in enumerate([9, 1, 1, 1, 5, 4, 3, 3])}
    owners = assign_ranks(costs, 3)
    loads = [sum(costs[name] for name in costs if owners[name] == rank) for rank in range(3)]
    assert sorted(loads) == [9, 9, 9] and owners == assign_ranks(dict(reversed(costs.items())), 3)
