"""Optimizers by transformers' own names, refused before a model is loaded where they cannot run."""

import pytest
import torch

from milora import MiloraError
from milora.run.recipe import load_recipe
from milora.training import arguments
from milora.training.arguments import check_optimizer
from milora.training.prepare import check_launch


def test_names(monkeypatch):
    for name in ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adamw_8bit", "paged_adamw_8bit"):
        check_optimizer(name)
    monkeypatch.setattr(arguments.importlib.util, "find_spec", lambda _: None)
    check_optimizer("adamw_torch_fused")
    for name in ("adamw_8bit", "adamw_bnb_8bit", "paged_lion_32bit", "ademamix", "rmsprop_bnb_32bit"):
        with pytest.raises(MiloraError, match="needs bitsandbytes"):
            check_optimizer(name)
    with pytest.raises(MiloraError, match=r"did you mean adamw_8bit\?"):
        check_optimizer("adamw_8bits")
    for name in ("galore_adamw", "lomo", "nothing"):
        with pytest.raises(MiloraError, match="not an optimizer that a recipe can have"):
            check_optimizer(name)


def test_lora_plus_has_its_own():
    with pytest.raises(MiloraError, match=r"LoRA\+ has an AdamW of its own"):
        load_recipe("quickstart", ["adapter.method=loraplus", "training.optimizer=sgd"])


def test_offloading_needs_an_accelerator():
    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator")
    with pytest.raises(MiloraError, match="there is no accelerator"):
        check_launch(load_recipe("quickstart", ["training.activation_offloading=true"]))


@pytest.mark.parametrize("name", ["adafactor", "adamw_8bit"])
def test_another_optimizer_trains(small_recipe, call, tmp_path, name):
    own = [f"training.optimizer={name}", "training.max_steps=2", "adapter.method=lora", "data.validation_rows=0"]
    code, _, err = call("train", small_recipe, *own, "--runs", tmp_path / "runs")
    assert code == 0, err
