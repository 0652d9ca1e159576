"""Which weights a recipe trains, and what is said about those that the model does not have, before it is loaded."""

import pytest
import torch
from transformers import AutoConfig

from milora.method.errors import MiloraError
from milora.models.methods import add_adapter
from milora.models.targets import check_targets
from milora.run.sections import AdapterSection, ModelSection
from tests.architectures import ARCHITECTURES


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Configs alone: to load one of these models would be an error."""
    root = tmp_path_factory.mktemp("configs")
    for name in ("falcon", "gpt2", "qwen3_moe", "mamba"):
        architecture = ARCHITECTURES[name]
        AutoConfig.for_model(architecture.model_type, **architecture.changes).save_pretrained(root / name)
    return root


@pytest.fixture
def check(folders):
    return lambda name, **adapter: check_targets(
        ModelSection(name=str(folders / name)), AdapterSection(**{"rank": 4, **adapter})
    )


FITTING = [
    ("falcon", {"target_modules": "all-linear"}),
    ("falcon", {"target_modules": "query_key_value"}),  # a subclass of Linear
    ("falcon", {"target_modules": "query_key_value,dense"}),
    ("falcon", {"target_modules": ["self_attention.dense"], "layers_to_transform": [1]}),
    ("falcon", {"target_modules": r".*\.1\..*dense.*"}),
    ("falcon", {"exclude_modules": ["query_key_value"]}),
    ("falcon", {"exclude_modules": r".*\.0\..*", "modules_to_save": ["word_embeddings"]}),
    ("gpt2", {"target_modules": ["c_attn"]}),
    ("mamba", {"target_modules": ["in_proj", "x_proj"]}),
    ("mamba", {"target_modules": ["nothing"], "method": "full"}),
]


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
@pytest.mark.parametrize(("name", "adapter"), FITTING, ids=str)
def test_what_fits(check, name, adapter):
    check(name, **adapter)


REFUSED = [
    ("falcon", {"target_modules": ["q_proj"]}, "q_proj is not a linear layer of .*it has dense, dense_4h_to_h, "),
    ("falcon", {"target_modules": ["mlp.query_key_value"]}, "mlp.query_key_value is not a linear layer"),
    ("falcon", {"target_modules": ["mlp"]}, r"for everything inside of it, write the expression \.\*mlp\.\*"),
    ("falcon", {"target_modules": "q_proj|v_proj"}, "the expression matches no linear layer"),
    ("falcon", {"exclude_modules": ["self_attention"]}, r"everything inside of it, write the expression"),
    ("falcon", {"exclude_modules": ".*"}, "PEFT refuses the adapter: All modules were excluded"),
    ("falcon", {"target_modules": "dense", "exclude_modules": "dens"}, "exclude_modules: dens is not a linear layer"),
    ("falcon", {"modules_to_save": ["embed_tokens"]}, "modules_to_save: embed_tokens is not a module of"),
    ("falcon", {"target_modules": "dense", "layers_to_transform": [1, 2]}, "has no layer 2 with a target module"),
    ("falcon", {"target_parameters": ["experts.up"]}, "target_parameters: experts.up is not a parameter of"),
    ("falcon", {"rank": 33}, "2 × dense: rank 33 is above 32"),
    ("mamba", {}, "PEFT refuses the adapter: .*incompatible with Mamba"),
]


@pytest.mark.parametrize(("name", "adapter", "message"), REFUSED, ids=str)
def test_what_does_not_fit(check, name, adapter, message):
    with pytest.raises(MiloraError, match=message):
        check(name, **adapter)


def trainable(model):
    return {name.replace(".modules_to_save", "") for name, part in model.named_parameters() if part.requires_grad}


def test_a_recipe_chooses_the_weights(load_small):
    torch.manual_seed(0)
    section = AdapterSection(
        rank=4,
        target_modules=["q_proj", "v_proj"],
        exclude_modules=["self_attn.v_proj"],
        layers_to_transform=[1],
        modules_to_save=["model.norm"],
    )
    model, report = add_adapter(load_small(), section, seed=0, jobs=1)
    assert list(report.layers) == ["base_model.model.model.layers.1.self_attn.q_proj"]
    assert trainable(model) == {
        "base_model.model.model.norm.default.weight",
        "base_model.model.model.layers.1.self_attn.q_proj.lora_A.default.weight",
        "base_model.model.model.layers.1.self_attn.q_proj.lora_B.default.weight",
    }


def test_a_name_outside_the_language_model_is_refused(tiny_llava):
    model = ModelSection(name=str(tiny_llava))
    check_targets(model, AdapterSection(rank=4, target_modules=["q_proj"]))
    check_targets(model, AdapterSection(rank=4, target_modules=r".*vision_tower.*fc1"))
    with pytest.raises(MiloraError, match="fc1 is not a linear layer of the language model of"):
        check_targets(model, AdapterSection(rank=4, target_modules=["q_proj", "fc1"]))
