"""Processes of one launch share an initialisation, and end with one start; what differs between them is an error.

Broken by: factors or signs of a process' own, an error that one process keeps to itself while the others wait for it.
"""

import multiprocessing
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
from milora.method.factors import share_out
from tests.conftest import add_milora, logits_of, make_qwen


def _prepare(model: PreTrainedModel) -> PeftModel:
    return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))


def all_end_with_one_start(rank: int, folder: Path) -> None:
    base = make_qwen()
    expected = logits_of(base)
    torch.manual_seed(rank)  # LoRA's own start differs
    model = _prepare(base)
    report = milora.initialize_lora_milora_weights(model)
    assert len(report.layers) == 14 and all(layer.certificate for layer in report.layers.values())
    assert torch.equal(logits_of(model), expected)
    save_file({name: p for name, p in model.state_dict().items() if "lora_" in name}, folder / f"{rank}.safetensors")


def an_error_of_one_is_everybodys(rank: int, folder: Path) -> None:
    model = _prepare(make_qwen())
    model.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight.data[0, 0] = float("nan")
    with pytest.raises(MiloraError, match="NaN or Inf"):
        milora.initialize_lora_milora_weights(model)


def weights_on_one_alone_are_noticed(rank: int, folder: Path) -> None:
    model = _prepare(make_qwen())
    if rank == 1:  # as fsdp_cpu_ram_efficient_loading leaves it
        for parameter in model.get_base_model().parameters():
            parameter.data.zero_()
    with pytest.raises(MiloraError, match="the weight on process 1 is not that on process 0.*ram_efficient_loading"):
        milora.initialize_lora_milora_weights(model)


def a_model_that_is_sharded_already_is_refused(rank: int, folder: Path) -> None:
    mesh = init_device_mesh("cpu", (2,))
    model = _prepare(make_qwen())
    fully_shard(model, mesh=mesh)
    with pytest.raises(MiloraError, match="shared out among processes already"):
        milora.initialize_lora_milora_weights(model)
    model = add_milora(make_qwen(), r=4)
    fully_shard(model, mesh=mesh)
    with pytest.raises(MiloraError, match="the adapter is shared out"):
        milora.save_milora_as_lora(folder / "out", model)


PASSED = "passed"
CHECKS = [
    all_end_with_one_start,
    an_error_of_one_is_everybodys,
    weights_on_one_alone_are_noticed,
    a_model_that_is_sharded_already_is_refused,
]


def _check(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for check in CHECKS:
        said = folder / f"{check.__name__}-{rank}"
        try:
            check(rank, folder)
            said.write_text(PASSED)
        except BaseException:
            said.write_text(traceback.format_exc())
            raise
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def checked(tmp_path_factory) -> Path:
    """What two processes found, each of which made all checks."""
    folder = tmp_path_factory.mktemp("checked")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.launch_on_cpu", "milora.training.train", "milora.evaluation.evaluate"])
    processes = [context.Process(target=_check, args=(rank, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
    return folder


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_two_processes(checked, check):
    for rank in range(2):
        assert (checked / f"{check.__name__}-{rank}").read_text() == PASSED


def test_the_start_is_that_of_one_process(checked):
    first, second = (load_file(checked / f"{rank}.safetensors") for rank in range(2))
    alone = add_milora(make_qwen(), r=4).state_dict()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]) and torch.equal(tensor, alone[name])


def test_shares_are_even():
    costs = {f"layer {index}": cost for index, cost in enumerate([9, 1, 1, 1, 5, 4, 3, 3])}
    owners = share_out(costs, 3)
    loads = [sum(costs[name] for name in costs if owners[name] == rank) for rank in range(3)]
    assert sorted(loads) == [9, 9, 9] and owners == share_out(dict(reversed(costs.items())), 3)
