"""Which models take pictures, and the processor that prepares them.

All private API of transformers that loads processors is in this file; tests/test_seams.py asserts it.
"""

import shutil
from pathlib import Path
from typing import Any, cast

from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    LlavaImageProcessorPil,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from milora.method.errors import MiloraError
from milora.models.failures import loading
from milora.models.located import load_config, locate_checkpoint, resolve_model
from milora.run.sections import ModelSection


def takes_pictures(section: ModelSection) -> bool:
    """Whether a model takes pictures beside text, by its config."""
    return is_pictured(load_config(section))


def is_pictured(config: PreTrainedConfig) -> bool:
    """Whether models of this config take pictures beside text."""
    return config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def load_processor(section: ModelSection) -> ProcessorMixin:
    """Return the processor of a model that takes pictures.

    Pictures are prepared by Pillow and NumPy: the results do not depend on whether torchvision is installed. Those of
    LLaVA are padded to a square, as LLaVA-1.5 was trained.

    Raises:
        MiloraError: a file of it is missing or damaged, or its model reads a prompt in both directions.
    """
    config = load_config(section)
    if config.model_type == "paligemma":
        raise MiloraError(
            f"{section.name} is a PaliGemma, whose prompts are read in both directions, and milora trains causal ones",
            "use a model such as LLaVA, Qwen-VL, Gemma 3, InternVL, or SmolVLM",
        )
    name: str = resolve_model(section.name)
    options: dict[str, Any] = {"revision": section.revision, "trust_remote_code": section.trust_remote_code}
    known = cast(Any, PROCESSOR_MAPPING).get(type(config), None)
    with loading(section.name):
        kind = AutoProcessor if known is None else _without_videos(known)
        processor = cast(ProcessorMixin, kind.from_pretrained(name, **options))
        if config.model_type == "llava":
            processor.image_processor = LlavaImageProcessorPil.from_pretrained(name, **options, do_pad=True)
        else:
            processor.image_processor = cast(Any, AutoImageProcessor).from_pretrained(name, **options, backend="pil")
    return processor


def copy_processor(section: ModelSection, output: Path) -> None:
    """Copy the files of a model's processor into the folder of a model that was made from it, as they are."""
    for pattern in ("*processor_config.json", "chat_template.*"):
        for file in locate_checkpoint(section).glob(pattern):
            shutil.copy2(file, output)


def find_language_model(model: PreTrainedModel) -> str | None:
    """Return the name of the language model inside a model that takes pictures, None of other models."""
    if not is_pictured(model.config):
        return None
    decoder = model.get_decoder()  # type: ignore[no-untyped-call]
    return next(str(name) for name, module in model.named_modules() if module is decoder)


def _without_videos(kind: Any) -> Any:
    """A processor's class without the part that reads videos, which needs torchvision."""
    names = [name for name in kind.get_attributes() if "video" not in name]
    return type(kind.__name__, (kind,), {"get_attributes": classmethod(lambda _: names)})
