"""The private API of dependencies that milora uses: its names and signatures.

An upper bound in pyproject.toml may be raised to a version on which these tests pass. A failure names the file to fix.

Broken by: a dependency that renames, moves or changes one of these.
"""

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlavaConfig, LlavaProcessor, Qwen2VLProcessor

import milora
from tests.conftest import make_llama
from tests.evaluation.test_ifeval import needs_sentences

NAMES = "method/names.py"
VARIANT, METHODS = "method/variant/", "models/methods.py"
ATTENTION = "training/attention.py"
TRAINER, GENERATOR = "training/trainer.py", "evaluation/generation/generator.py"
VISION, PROCESSOR = "models/vision.py", "data/processor.py"

# Module, name, parameters, and the file of milora that uses it. "…" at the end allows for further parameters.
SIGNATURES = [
    ("transformers.conversion_mapping", "get_model_conversion_mapping", "model …", "method/names.py"),
    (
        "transformers.core_model_loading",
        "rename_source_key",
        "source_key weight_renamings weight_converters base_model_prefix meta_state_dict …",
        "method/names.py",
    ),
    ("peft.tuners.lora.layer", "LoraVariant.init", "module adapter_name", VARIANT),
    ("peft.tuners.lora.layer", "LoraVariant.forward", "module active_adapter x result kwargs", VARIANT),
    ("peft.tuners.lora.layer", "LoraVariant.merge_safe", "module active_adapter orig_weight", VARIANT),
    ("peft.tuners.lora.layer", "LoraVariant.merge_unsafe", "module active_adapter orig_weight", VARIANT),
    ("peft.tuners.lora.layer", "LoraVariant.unmerge", "module active_adapter orig_weight", VARIANT),
    ("peft.tuners.lora.layer", "LoraVariant.supports_lora_conversion", "self", VARIANT),
    ("peft.tuners.lora.layer", "LoraLayer.resolve_lora_variant", "self config kwargs", VARIANT),
    ("peft.tuners.lora.layer", "LoraLayer._cache_store", "self key value", VARIANT),
    ("peft.tuners.lora.layer", "LoraLayer._cache_pop", "self key", VARIANT),
    (
        "peft.tuners.lora.layer",
        "ParamWrapper.unload_and_optionally_merge_module",
        "self merge safe_merge adapter_names",
        VARIANT,
    ),
    ("peft.tuners.lora.layer", "ParamWrapper.update_layer", "self adapter_name r lora_alpha config kwargs", VARIANT),
    ("peft.tuners.lora.layer", "ParamWrapper.get_delta_factors", "self adapter_name", VARIANT),
    ("peft.tuners.lora.layer", "ParamWrapper.get_delta_weight", "self adapter_name args kwargs", VARIANT),
    ("peft.tuners.lora.layer", "ParamWrapper.get_param", "self", VARIANT),
    ("peft.tuners.lora.layer", "ParamWrapper.merge", "self safe_merge adapter_names", VARIANT),
    ("peft.tuners.lora.layer", "ParamWrapper.unmerge", "self", VARIANT),
    ("peft.tuners.tuners_utils", "check_adapters_to_merge", "module adapter_names", VARIANT),
    ("transformers.core_model_loading", "dot_natural_key", "s", NAMES),
    ("peft.tuners.lora.layer", "Linear.merge", "self safe_merge adapter_names", VARIANT),
    ("peft.tuners.lora.layer", "Linear.get_delta_weight", "self adapter", "method/analysis/change.py"),
    ("peft.utils.integrations", "get_bnb_param_type", "param", VARIANT),
    ("peft.utils.integrations", "dequantize_module_weight", "module", "method/analysis/spectrum.py"),
    ("peft.utils.other", "get_pattern_key", "pattern_keys key_to_match", "models/gguf.py"),
    ("peft.utils.integrations", "gather_params_ctx", "param modifier_rank …", TRAINER),
    ("peft.tuners.lora", "LoraModel.add_weighted_adapter", "self adapters …", "method/initialization.py"),
    ("peft.tuners.lora", "LoraLayer.pissa_init", "self adapter_name init_lora_weights", METHODS),
    ("peft.tuners.lora", "LoraLayer.olora_init", "self adapter_name", METHODS),
    ("peft.tuners.lora", "LoraLayer.lora_ga_init", "self adapter_name lora_ga_config", METHODS),
    ("peft.tuners.lora", "preprocess_loraga", "model lora_config train_step …", METHODS),
    ("peft", "AdaLoraModel.update_and_allocate", "self global_step", METHODS),
    ("trl", "SFTTrainer.create_optimizer", "self model", TRAINER),
    ("transformers", "Trainer.training_step", "self model inputs num_items_in_batch …", TRAINER),
    ("trl", "SFTTrainer.compute_loss", "self model inputs return_outputs num_items_in_batch", TRAINER),
    (
        "transformers.integrations.sdpa_attention",
        "sdpa_attention_forward",
        "module query key value attention_mask dropout scaling is_causal …",
        ATTENTION,
    ),
    ("transformers", "PreTrainedModel.set_attn_implementation", "self attn_implementation …", ATTENTION),
    (
        "torch.nn.attention.varlen",
        "varlen_attn",
        "query key value cu_seq_q cu_seq_k max_q max_k return_aux scale window_size enable_gqa …",
        ATTENTION,
    ),
    ("trl", "SFTTrainer.get_batch_samples", "self epoch_iterator num_batches device", TRAINER),
    ("trl", "SFTTrainer._get_num_items_in_batch", "self batch_samples device", TRAINER),
    ("trl", "SFTTrainer._save_checkpoint", "self model trial", TRAINER),
    ("trl", "SFTTrainer._save", "self output_dir state_dict", TRAINER),
    ("trl", "SFTTrainer.save_model", "self output_dir _internal_call", TRAINER),
    ("trl.chat_template_utils", "get_training_chat_template", "processing_class tokenizer", "data/turns.py"),
    ("transformers.integrations.deepspeed", "unset_hf_deepspeed_config", "", TRAINER),
    ("transformers.integrations.liger", "apply_liger_kernel", "model kernel_config", "models/kernels.py"),
    ("transformers", "Cache.batch_repeat_interleave", "self repeats", GENERATOR),
    ("transformers", "Cache.batch_select_indices", "self indices", GENERATOR),
    ("transformers", "ProcessorMixin.get_attributes", "", VISION),
    ("transformers", "ProcessorMixin.replace_image_token", "self image_inputs image_idx …", PROCESSOR),
    ("transformers", "ProcessorMixin.create_mm_token_type_ids", "self input_ids", PROCESSOR),
    ("lm_eval.evaluator", "get_git_commit_hash", "", "evaluation/harness.py"),
    ("lm_eval.tasks._yaml_loader", "load_yaml", "path …", "evaluation/harness.py"),
    (
        "lm_eval.models.huggingface",
        "HFLM._model_generate",
        "self context max_length stop generation_kwargs",
        GENERATOR,
    ),
]

# Module, attribute of a class, its type, and the file of milora that uses it.
ATTRIBUTES = [
    ("peft.tuners.lora", "LoraLayer.other_param_names", tuple, VARIANT),
    ("transformers", "PreTrainedModel._is_stateful", bool, GENERATOR),
    ("transformers", "ProcessorMixin.return_mm_token_type_ids", bool, PROCESSOR),
    ("transformers", "ProcessorMixin.image_token_ids", property, PROCESSOR),
    ("transformers", "ProcessorMixin.unused_input_names", property, PROCESSOR),
]


def _find(module: str, path: str, user: str) -> object:
    found = import_module(module)
    for name in path.split("."):
        assert hasattr(found, name), f"{module} has no {path}: fix src/milora/{user}"
        found = getattr(found, name)
    return found


@pytest.mark.parametrize(("module", "path", "expected", "user"), SIGNATURES, ids=[row[1] for row in SIGNATURES])
def test_signature(module, path, expected, user):
    found = list(inspect.signature(_find(module, path, user)).parameters)
    names = expected.removesuffix("…").split()
    compared = found[: len(names)] if expected.endswith("…") else found
    assert compared == names, f"{module}.{path} takes {found}, not {names}: fix src/milora/{user}"


@pytest.mark.parametrize(("module", "path", "kind", "user"), ATTRIBUTES, ids=[row[1] for row in ATTRIBUTES])
def test_attribute(module, path, kind, user):
    found = _find(module, path, user)
    assert isinstance(found, kind), f"{module}.{path} is {found!r}, not a {kind.__name__}: fix src/milora/{user}"


def test_processors():
    """The processor of a config is looked up by its class, and parts that it does not list are not loaded."""
    reason = f"fix src/milora/{VISION}"
    found = _find("transformers.models.auto.processing_auto", "PROCESSOR_MAPPING", VISION).get(LlavaConfig, None)
    assert found is LlavaProcessor, reason
    assert sorted(found.get_attributes()) == ["image_processor", "tokenizer"], reason
    assert "video_processor" in Qwen2VLProcessor.get_attributes(), reason
    names = _find("transformers.models.auto.modeling_auto", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES", VISION)
    assert "llava" in names and "llama" not in names, reason


@needs_sentences
def test_checks_of_instructions():
    """IFEval's checks take one example and one response; a check is a class by name, whose letter can be set."""
    reason = "fix src/milora/evaluation/graders/instructions.py"
    utils = import_module("lm_eval.tasks.ifeval.utils")
    for name in ("strict", "loose"):
        check = getattr(utils, f"test_instruction_following_{name}")
        assert list(inspect.signature(check).parameters) == ["inp", "response"], reason
    fields = ["key", "instruction_id_list", "prompt", "kwargs"]
    assert list(inspect.signature(utils.InputExample).parameters) == fields, reason
    registry = import_module("lm_eval.tasks.ifeval.instructions_registry")
    letters = registry.INSTRUCTION_DICT["keywords:letter_frequency"]("keywords:letter_frequency")
    letters.build_description(letter="a", let_frequency=1, let_relation="at least")
    assert letters._letter == "a", reason


def test_layer_attributes():
    """A LoRA layer keeps its variants in a dict that is read at every forward pass, and its factors in module dicts."""
    model = get_peft_model(make_llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    reason = f"fix src/milora/{VARIANT}"
    assert layer.lora_variant == {}, reason
    for name in ("lora_A", "lora_B", "lora_dropout"):
        assert isinstance(getattr(layer, name), nn.ModuleDict), reason
    for name in ("r", "scaling"):
        assert layer.__dict__[name].keys() == {"default"}, reason
    assert layer.fan_in_fan_out is False, reason


def _files() -> Iterator[tuple[str, str]]:
    source = Path(milora.__file__).parent
    for file in source.rglob("*.py"):
        yield str(file.relative_to(source)), file.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "user"),
    [
        ("_cache_store", VARIANT),
        ("_cache_pop", VARIANT),
        ("lora_variant", VARIANT),
        ("resolve_lora_variant", VARIANT),
        ("LoraVariant", VARIANT),
        ("other_param_names", VARIANT),
        ("get_bnb_param_type", VARIANT),
        ("_peft_loraga_grad", METHODS),
        ("_get_num_items_in_batch", TRAINER),
        ("gather_params_ctx", TRAINER),
        ("_model_generate", GENERATOR),
        ("_did_swap_in_out_features", VARIANT),
        ("check_adapters_to_merge", VARIANT),
        ("rename_source_key", NAMES),
        ("_is_stateful", GENERATOR),
        ("PROCESSOR_MAPPING", VISION),
        ("get_attributes", VISION),
        ("replace_image_token", PROCESSOR),
        ("create_mm_token_type_ids", PROCESSOR),
        ("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES", VISION),
    ],
)
def test_each_private_name_is_used_in_one_place(name, user):
    users = [file for file, text in _files() if re.search(rf"\b{name}\b", text)]
    assert users and all(file.startswith(user) for file in users), f"{name} is private API: use it in {user} alone"
