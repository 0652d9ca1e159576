"""Base models as recipes name them, with their tokenizers; and adapters put on them."""

import importlib.util
import os
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from milora.method.errors import MiloraError
from milora.method.loading import load_milora
from milora.method.options import Form
from milora.method.variant.config import is_saved_milora
from milora.models.failures import loading, one_line
from milora.models.located import load_config, resolve_model
from milora.models.vision import takes_pictures
from milora.run.sections import ModelSection


def load_model(section: ModelSection) -> PreTrainedModel:
    """Load a causal language model, with or without a vision tower, in the section's dtype, quantized as it says.

    Raises:
        MiloraError: the model does not exist, is not a causal language model, or lacks a weight, which transformers
            would draw at random.
    """
    name = resolve_model(section.name)
    options = _quantize(section)
    with loading(section.name):
        loaded: Any = _kind(section).from_pretrained(
            name,
            revision=section.revision,
            dtype=getattr(torch, section.dtype),
            trust_remote_code=section.trust_remote_code,
            use_safetensors=True,  # never a pickle
            output_loading_info=True,
            **options,
        )
    model: PreTrainedModel = loaded[0]
    _check_whole(section.name, model, loaded[1])
    if section.added_tokens:
        _embed_added(model, max(added_ids(section, load_tokenizer(section))) + 1)
    for part in model.modules():
        if type(part).__name__ == "Linear4bit":
            # On a CPU bitsandbytes would repack the weights at the first forward pass in eval mode, and from then on
            # no gradient passes through them.
            part.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return model


def _kind(section: ModelSection) -> Any:
    return AutoModelForImageTextToText if takes_pictures(section) else AutoModelForCausalLM


def _check_whole(name: str, model: PreTrainedModel, info: dict[str, Any]) -> None:
    missing = sorted(info["missing_keys"])
    if missing:
        raise MiloraError(
            f"model {name!r} lacks {len(missing)} weights, {missing[0]} among them", "download or save the model again"
        )
    saved_as = [kind for kind in model.config.architectures or [] if kind.endswith(NOT_CAUSAL)]
    if saved_as:
        raise MiloraError(f"model {name!r} is a {saved_as[0]}, not a causal language model", "name a causal one")


NOT_CAUSAL = ("MaskedLM", "SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice")


def _quantize(section: ModelSection) -> dict[str, Any]:
    if section.quantization is None:
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MiloraError(
            f"model.quantization={section.quantization} needs bitsandbytes", "pip install 'milora[quantized]'"
        )
    accelerator = torch.accelerator.current_accelerator()
    config = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=section.quantization == "nf4",
        load_in_8bit=section.quantization == "int8",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=getattr(torch, section.dtype),
    )
    # Whole on this process's own device: a quantized model is not moved afterwards.
    device = f"{accelerator.type}:{os.environ.get('LOCAL_RANK', '0')}" if accelerator else "cpu"
    return {"quantization_config": config, "device_map": {"": device}}


def _embed_added(model: PreTrainedModel, rows: int) -> None:
    """Give each token without an embedding the mean of all others: transformers would draw it at random."""
    known = len(_embedding_weights(model)[0])
    if rows <= known:
        return  # most models have spare rows
    model.resize_token_embeddings(rows, mean_resizing=False)
    for weight in _embedding_weights(model):
        weight[known:] = weight[:known].float().mean(0)


def _embedding_weights(model: PreTrainedModel) -> list[Tensor]:
    """The weights, one row a token, before the first layer and after the last one; these may be the same."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[no-untyped-call]
    return [cast(Tensor, end.weight).data for end in ends if end is not None]


def load_tokenizer(section: ModelSection, adapter: Path | None = None) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer, or that of an `adapter` that has its own, with the section's added tokens.

    A missing end-of-sequence token is that of the model's config. A missing pad token, and one that the model does not
    embed, becomes the end-of-sequence token: masks tell the two apart.

    Raises:
        MiloraError: neither the tokenizer nor the model's config names an end-of-sequence token.
    """
    name, revision = (str(adapter), None) if adapter else (resolve_model(section.name), section.revision)
    with loading(str(adapter or section.name)):
        # mistral-common's tokenizer, which transformers prefers where it is installed, has neither chat templates in
        # Jinja nor a way to read control tokens as text.
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name, revision=revision, trust_remote_code=section.trust_remote_code, mistral_format=False
        )
    tokenizer.add_tokens(list(section.added_tokens))  # not as special ones, which the text of a row cannot contain
    if tokenizer.eos_token is None:
        tokenizer.eos_token = _find_end(section, tokenizer)
    if tokenizer.pad_token is None or tokenizer.pad_token_id >= count_embedded(section, tokenizer):
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _find_end(section: ModelSection, tokenizer: PreTrainedTokenizerBase) -> str:
    known = load_config(section).get_text_config().eos_token_id
    ends = known if isinstance(known, list) else [known]
    token = None if ends[0] is None else tokenizer.convert_ids_to_tokens(ends[0])
    if token is None:
        raise MiloraError(
            f"the tokenizer of {section.name} has no end-of-sequence token, with which an answer ends",
            "set eos_token in its tokenizer_config.json",
        )
    return str(token)


def added_ids(section: ModelSection, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of the section's added tokens."""
    known = tokenizer.get_vocab()
    return [known[token] for token in section.added_tokens]


def count_embedded(section: ModelSection, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many tokens the model embeds, by its config: fewer than some tokenizers have, more than most."""
    rows: int = load_config(section).get_text_config().vocab_size
    return max(rows, *(token + 1 for token in added_ids(section, tokenizer)), 0)


def context_length(section: ModelSection, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return how many tokens a prompt and its answer may have together: as the model's config says, else its tokenizer.

    None if neither says, as for models with a recurrent state.
    """
    text = load_config(section).get_text_config()
    length = getattr(text, "max_position_embeddings", None)
    if length is None and tokenizer.model_max_length < VERY_LARGE_INTEGER:
        length = tokenizer.model_max_length
    return length


def attach_adapter(model: PreTrainedModel, adapter: Path, form: Form = "intact") -> PeftModel:
    """Put a trained adapter, MiLoRA's or any other of PEFT's, on its base in eval mode.

    Raises:
        MiloraError: the folder does not contain an adapter, or contains one of another base.
    """
    config = read_adapter_config(adapter)
    if isinstance(config, LoraConfig) and is_saved_milora(config):
        return load_milora(model, adapter, form=form)
    rows = stored_rows(model, adapter)
    if rows is not None:  # its vocabulary may be larger
        model.resize_token_embeddings(rows, mean_resizing=False)
    with warnings.catch_warnings():
        # AdaLoRA names its ranks by parameter, and PEFT's check reads them as modules; they are applied all the same.
        warnings.filterwarnings("ignore", message="The following rank_pattern keys did not match .*lora_E")
        try:
            return PeftModel.from_pretrained(model, str(adapter)).eval()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = " ".join(line.strip() for line in str(error).splitlines()[:2])
            raise MiloraError(
                f"{adapter} does not fit the base that its config names: {reason}", "name the adapter of this base"
            ) from error


def unwrap(model: nn.Module) -> PreTrainedModel:
    """Return the model that an adapter's layers are in, or the model itself if it has no adapter."""
    return cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)


def stored_rows(model: PreTrainedModel, adapter: Path) -> int | None:
    """Return the size of the vocabulary whose input embeddings an adapter's file contains, None if it has none.

    `model` is its base, without the adapter.
    """
    embeddings = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embeddings)
    file = adapter / "adapter_model.safetensors"
    if not file.is_file():
        return None
    with safe_open(file, "pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118  not a mapping
            if key.endswith(f".{name}.weight"):
                rows: int = tensors.get_slice(key).get_shape()[0]
                return rows
    return None


def read_adapter_config(adapter: Path) -> PeftConfig:
    """Return PEFT's config of an adapter.

    Raises:
        MiloraError: the folder does not contain an adapter, or its config is damaged.
    """
    try:
        config: PeftConfig = PeftConfig.from_pretrained(str(adapter))
    except Exception as error:  # of any type, by what is wrong with the file
        raise MiloraError(
            f"{adapter} does not contain an adapter: {one_line(error)}", "name a folder with adapter_config.json"
        ) from error
    return config


def load_skeleton(section: ModelSection) -> PreTrainedModel:
    """Build the model from its config alone, its weights on the meta device: names and shapes, no values."""
    config = load_config(section)
    with loading(section.name), torch.device("meta"):
        model: PreTrainedModel = _kind(section).from_config(config)
    return model
