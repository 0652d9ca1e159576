"""The export as an ordinary LoRA: what PEFT would have saved, from whatever wraps the model; and TRL's SFTTrainer.

Broken by: names that plain PEFT does not find in the base, tensors left out, keys that PEFT 0.13 does not know.
"""

import json

import datasets
import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoTokenizer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from trl import SFTConfig, SFTTrainer

import milora
from milora.method.errors import MiloraWarning
from tests.conftest import add_milora, drift, logits_of, make_gpt2, make_llama, make_qwen, train_briefly

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*pin_memory.*")


def _trainer(small_model, load_whole, folder, **arguments):
    model = get_peft_model(load_whole(), LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1))
    milora.initialize_lora_milora_weights(model)
    rows = datasets.Dataset.from_list([{"prompt": f"{i} and {i}", "completion": f" make {2 * i}"} for i in range(16)])
    config = SFTConfig(
        str(folder), max_steps=4, save_steps=2, per_device_train_batch_size=4, learning_rate=1e-3, report_to="none",
        disable_tqdm=True, logging_steps=1, activation_checkpointing=False, bf16=False, **arguments,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(small_model)
    return SFTTrainer(
        model, args=config, train_dataset=rows, processing_class=tokenizer, callbacks=[milora.MiloraCallback()]
    )


@pytest.mark.slow
def test_sft_trainer_trains_checkpoints_and_resumes(small_model, load_whole, tmp_path):
    whole = _trainer(small_model, load_whole, tmp_path / "whole")
    whole.train()
    resumed = _trainer(small_model, load_whole, tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert torch.equal(logits_of(resumed.model), logits_of(whole.model))
    assert drift(logits_of(whole.model), logits_of(load_whole())) > 1e-4

    checkpoint = tmp_path / "whole" / "checkpoint-4"
    assert torch.equal(logits_of(milora.load_milora(load_whole(), checkpoint)), logits_of(whole.model))
    portable = PeftModel.from_pretrained(load_whole(), tmp_path / "whole" / "lora-4")
    assert drift(logits_of(portable), logits_of(whole.model)) < 1e-5


def test_only_the_factors_train(load_whole):
    model = get_peft_model(load_whole(), LoraConfig(r=4, target_modules="all-linear"))
    plain = model.get_nb_trainable_parameters()[0]
    milora.initialize_lora_milora_weights(model)
    assert model.get_nb_trainable_parameters()[0] == plain


def move(model):
    """Change what trains at random: A, B, and whole modules."""
    torch.manual_seed(6)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn_like(parameter)
    return model.eval()


def reload(make, folder, rows=None):
    """Load an export by plain PEFT, whose warnings of missing tensors are errors."""
    base = make()
    if rows:
        base.resize_token_embeddings(rows, mean_resizing=False)
    return PeftModel.from_pretrained(base, folder).eval()


def test_what_is_written_is_what_peft_writes(tmp_path):
    """The same tensors and files as of an ordinary LoRA of the same layers; of its config, the classic keys."""
    plain = LoraConfig(r=8, target_modules=["q_proj", "down_proj"])
    get_peft_model(make_llama(), plain).save_pretrained(tmp_path / "plain")
    model = move(add_milora(make_llama(), r=4, target_modules=["q_proj", "down_proj"]))
    model.peft_config["default"].task_type = None
    report = milora.save_milora_as_lora(tmp_path / "ours", model)
    assert (report.rank, report.dtype, report.largest_error, report.warnings) == (8, torch.float32, 0.0, [])
    assert len(repr(report)) < 300
    ours, theirs = (load_file(tmp_path / folder / "adapter_model.safetensors") for folder in ("ours", "plain"))
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}
    assert {file.name for file in (tmp_path / "ours").iterdir()} == {
        file.name for file in (tmp_path / "plain").iterdir()
    }
    mine, others = (json.loads((tmp_path / folder / "adapter_config.json").read_text()) for folder in ("ours", "plain"))
    assert mine["auto_mapping"] == others["auto_mapping"] and mine["auto_mapping"]["base_model_class"]
    assert mine.items() <= (others | {"lora_alpha": 8, "target_modules": ["down_proj", "q_proj"]}).items()
    assert drift(logits_of(reload(make_llama, tmp_path / "ours")), logits_of(model)) < 1e-5


# The fields of LoraConfig in PEFT 0.13.2, which stops at any other.
KNOWN_TO_PEFT_0_13 = {
    *("peft_type", "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode"),
    *("r", "target_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "use_rslora", "modules_to_save"),
    *("init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "use_dora"),
    *("megatron_config", "megatron_core", "loftq_config", "layer_replication"),
}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True, "alpha_pattern": {"q_proj": 3}},
        {"rank_pattern": {"q_proj": 2}},
        {"fan_in_fan_out": True, "make": make_gpt2},
    ],
    ids=["plain", "rsLoRA", "ranks", "transposed"],
)
def test_the_config_is_one_that_peft_0_13_reads(options, tmp_path):
    make = options.pop("make", make_llama)
    report = milora.save_milora_as_lora(tmp_path, move(add_milora(make(), r=4, **options)))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config.keys() <= KNOWN_TO_PEFT_0_13
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (report.rank, report.rank, False)
    assert config["rank_pattern"] == config["alpha_pattern"] == {} and config["init_lora_weights"] is True


def test_options_of_newer_versions_are_kept(tmp_path):
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], exclude_modules=["layers.1.self_attn.v_proj"])
    model = get_peft_model(make_llama(), config)
    milora.initialize_lora_milora_weights(model)
    milora.save_milora_as_lora(tmp_path, move(model))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["exclude_modules"] == [
        "layers.1.self_attn.v_proj"
    ]
    assert drift(logits_of(reload(make_llama, tmp_path)), logits_of(model)) < 1e-5


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def compiled(module):
    return torch.compile(module, backend="eager")


WRAPPERS = {
    "compiled": compiled,
    "DataParallel": nn.DataParallel,
    "DDP": DistributedDataParallel,
    "DDP, compiled": lambda model: compiled(DistributedDataParallel(model)),
    "compiled, then DDP": lambda model: DistributedDataParallel(compiled(model)),
    "accelerate": lambda model: Accelerator(cpu=True).prepare_model(model),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapped_model_is_unwrapped(wrap, one_process, tmp_path):
    model = move(add_milora(make_llama(), r=4))
    expected = logits_of(model)
    milora.save_milora_as_lora(tmp_path / "out", wrap(model))
    assert drift(logits_of(reload(make_llama, tmp_path / "out")), expected) < 1e-5


def _compile_base(model):
    model.base_model.model = compiled(model.base_model.model)


def _compile_layers(model):
    layers = model.base_model.model.model.layers
    for index, layer in enumerate(layers):
        layers[index] = compiled(layer)


def _checkpoint_layers(model):
    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, LlamaDecoderLayer))


def _compile_in_place(model):
    model.compile(backend="eager")
    model.base_model.model.model.layers[0].compile(backend="eager")


@pytest.mark.parametrize("change", [_compile_base, _compile_layers, _checkpoint_layers, _compile_in_place])
def test_names_inside_of_the_model_are_those_of_the_base(change, tmp_path):
    model = move(add_milora(make_llama(), r=4))
    expected = logits_of(model)
    change(model)
    milora.save_milora_as_lora(tmp_path / "out", model)
    assert drift(logits_of(reload(make_llama, tmp_path / "out")), expected) < 1e-5


@pytest.mark.parametrize(
    "part", [lambda m: m.base_model, lambda m: m.get_base_model(), lambda m: m.get_base_model().model], ids="abc"
)
def test_a_part_of_the_model_is_refused(part, tmp_path):
    model = add_milora(make_llama(), r=4)
    with pytest.raises(milora.MiloraError, match="is not a PeftModel.*not a part of it"):
        milora.save_milora_as_lora(tmp_path / "out", part(model))
    assert not (tmp_path / "out").exists()


def make_tied():
    return make_llama(tied=True)


CARRIED = {
    "head": (make_llama, {"modules_to_save": ["lm_head"]}, "lm_head.weight"),
    "both ends": (make_llama, {"modules_to_save": ["lm_head", "embed_tokens"]}, "lm_head.weight"),
    "norm": (make_qwen, {"modules_to_save": ["norm"]}, "norm.weight"),
    "tied": (
        make_tied,
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        "embed_tokens.weight",
    ),
    "rows": (make_llama, {"trainable_token_indices": {"embed_tokens": [3, 5]}}, "trainable_tokens_delta"),
    "tied rows": (make_tied, {"trainable_token_indices": [3, 5]}, "trainable_tokens_delta"),
}


@pytest.mark.parametrize(("make", "options", "tensor"), CARRIED.values(), ids=CARRIED)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
def test_what_trains_beside_the_factors_is_saved_and_said(make, options, tensor, tmp_path):
    model = get_peft_model(make(), LoraConfig(r=4, target_modules=["q_proj", "up_proj"], **options))
    milora.initialize_lora_milora_weights(model)
    expected = logits_of(move(model))
    with pytest.warns(MiloraWarning, match="vLLM and llama.cpp do not"):
        report = milora.save_milora_as_lora(tmp_path, model)
    assert len(report.warnings) == 1
    assert any(name.endswith(tensor) for name in load_file(tmp_path / "adapter_model.safetensors"))
    assert drift(logits_of(reload(make, tmp_path)), expected) < 1e-5


@pytest.mark.parametrize("make", [make_llama, make_tied], ids=["apart", "tied"])
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_resized_embeddings_are_kept(make, tmp_path):
    make().save_pretrained(tmp_path / "base")
    base = make()
    base.name_or_path = str(tmp_path / "base")
    base.resize_token_embeddings(203, mean_resizing=False)
    model = move(add_milora(base, r=4, target_modules=["q_proj"]))
    with pytest.warns(MiloraWarning, match="embed_tokens.weight first|lm_head.weight first"):
        milora.save_milora_as_lora(tmp_path / "out", model)
    state = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert state["base_model.model.model.embed_tokens.weight"].shape[0] == 203
    assert drift(logits_of(reload(make, tmp_path / "out", rows=203)), logits_of(model)) < 1e-5


def test_another_adapter_is_written_to_the_folder_itself(tmp_path):
    model = get_peft_model(make_llama(), LoraConfig(r=4, target_modules=["q_proj"]))
    model.add_adapter("b", LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    for name in ("default", "b"):
        milora.initialize_lora_milora_weights(model, adapter_name=name)
    model.set_adapter("b")
    milora.save_milora_as_lora(tmp_path, move(model), adapter_name="b")
    assert {file.name for file in tmp_path.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
    }
    assert drift(logits_of(reload(make_llama, tmp_path)), logits_of(model)) < 1e-5


def test_the_card_is_pefts_and_what_is_in_one_already_stays(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\nMine.\n")
    milora.save_milora_as_lora(tmp_path, move(add_milora(make_llama(), r=4)))
    card = (tmp_path / "README.md").read_text()
    assert "license: mit" in card and "Mine." in card and "library_name: peft" in card


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_the_dtype_is_the_bases_where_that_is_exact_enough(dtype, tmp_path):
    model = move(add_milora(make_llama(torch.bfloat16), r=4))
    report = milora.save_milora_as_lora(tmp_path, model, dtype=dtype)
    assert report.dtype == (dtype or torch.bfloat16)
    assert {value.dtype for value in load_file(tmp_path / "adapter_model.safetensors").values()} == {report.dtype}
    delta = {}
    for folder, tuned in ((None, model), (tmp_path, PeftModel.from_pretrained(make_llama(torch.bfloat16), tmp_path))):
        layer = tuned.base_model.model.model.layers[1].mlp.up_proj
        if folder:
            delta["written"] = layer.get_delta_weight("default").float()
        else:
            up, down = layer.lora_B["default"].weight, layer.lora_A["default"].weight
            B0, A0 = (getattr(layer, f"lora_initial_{part}")["default"].weight for part in "BA")
            delta["trained"] = (up @ down - B0 @ A0) * layer.scaling["default"]
    error = report.errors["base_model.model.model.layers.1.mlp.up_proj"]
    assert drift(delta["written"], delta["trained"]) == pytest.approx(error, abs=1e-4)
    assert error <= (0.0 if dtype == torch.float32 else 2**-8)


def test_a_base_whose_dtype_is_too_coarse_does_not_decide_it(tmp_path):
    """In float16 numbers below 6e-5 lose digits, and those below 6e-8 are zero."""
    model = add_milora(make_llama(torch.float16), r=4)
    for name, parameter in model.named_parameters():
        if "lora_" in name and parameter.requires_grad:
            parameter.data += 1e-7 * torch.randn_like(parameter)
    report = milora.save_milora_as_lora(tmp_path / "a", model)
    assert (report.dtype, report.largest_error) == (torch.float32, 0.0)
    assert milora.save_milora_as_lora(tmp_path / "b", model, dtype=torch.float16).largest_error > 2**-8
    model.base_model.model.model.layers[0].mlp.up_proj.lora_A["default"].weight.data += 1e6
    with pytest.raises(milora.MiloraError, match="up_proj: a factor is not finite in torch.float16"):
        milora.save_milora_as_lora(tmp_path / "c", model, dtype=torch.float16)


def test_recompression_and_rounding_are_one_error(tmp_path):
    model = move(add_milora(make_llama(torch.bfloat16), r=4))
    exact = milora.save_milora_as_lora(tmp_path / "a", model, rank=3, dtype=torch.float32)
    rounded = milora.save_milora_as_lora(tmp_path / "b", model, rank=3)
    assert rounded.rank == 3 and rounded.dtype == torch.bfloat16
    for name, error in exact.errors.items():
        assert 0.05 < error < rounded.errors[name] < error + 2**-8


def test_an_export_does_not_replace_a_raw_adapter(tmp_path):
    model = train_briefly(add_milora(make_llama(), r=4))
    model.save_pretrained(tmp_path / "raw")
    before = {file: file.read_bytes() for file in (tmp_path / "raw").iterdir()}
    with pytest.raises(milora.MiloraError, match="contains a raw MiLoRA adapter.*another folder"):
        milora.save_milora_as_lora(tmp_path / "raw", model)
    assert {file: file.read_bytes() for file in (tmp_path / "raw").iterdir()} == before
    for _ in range(2):  # an ordinary LoRA is replaced, as PEFT does
        milora.save_milora_as_lora(tmp_path / "out", model)
    assert torch.equal(logits_of(milora.load_milora(make_llama(), tmp_path / "raw")), logits_of(model))


def test_a_rank_that_vllm_does_not_serve_is_said(tmp_path):
    model = get_peft_model(nn.Sequential(nn.Linear(260, 260)), LoraConfig(r=258, target_modules=["0"]))
    milora.initialize_lora_milora_weights(model)
    with pytest.warns(MiloraWarning, match="up to 512, and this adapter has 516"):
        milora.save_milora_as_lora(tmp_path, model)
