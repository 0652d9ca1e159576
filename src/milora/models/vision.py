"""Which models take pictures, and the processor that prepares them.

All private API of transformers' processors that milora uses is in this file; tests/test_seams.py asserts it.
"""

from typing import Any, cast

from transformers import AutoImageProcessor, AutoProcessor, LlavaImageProcessorPil, ProcessorMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from milora.models.failures import loading
from milora.models.located import load_config, resolve_model
from milora.run.sections import ModelSection


def takes_pictures(section: ModelSection) -> bool:
    """Whether a model takes pictures beside text, by its config."""
    return load_config(section).model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def load_processor(section: ModelSection) -> ProcessorMixin:
    """Return the processor of a model that takes pictures.

    Pictures are prepared by Pillow and NumPy: the results do not depend on whether torchvision is installed. Those of
    LLaVA are padded to a square, as LLaVA-1.5 was trained.

    Raises:
        MiloraError: a file of it is missing or damaged.
    """
    config = load_config(section)
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


def _without_videos(kind: Any) -> Any:
    """A processor's class without the part that reads videos, which needs torchvision."""
    names = [name for name in kind.get_attributes() if "video" not in name]
    return type(kind.__name__, (kind,), {"get_attributes": classmethod(lambda _: names)})
