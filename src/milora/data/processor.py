"""What a model's processor makes of pictures: the tokens that stand for them in a text, and their pixel values.

All private API of processors that are loaded is in this file; tests/test_seams.py asserts it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from PIL import Image
from transformers import ProcessorMixin

from milora.data.pictures import measure_picture, open_picture
from milora.method.errors import MiloraError


@dataclass(eq=False)
class Pictures:
    """The pictures of a model's conversations. The processor is loaded once there is a picture."""

    load: Callable[[], ProcessorMixin]
    _expansions: dict[tuple[int, int], str] = field(default_factory=dict)

    @cached_property
    def processor(self) -> Any:
        return self.load()

    @property
    def placeholder(self) -> str:
        """The text that stands for a picture in a rendered conversation."""
        return str(self.processor.image_token)

    @property
    def tokens(self) -> frozenset[int]:
        """The tokens in whose place the model puts what it sees."""
        return frozenset(self.processor.image_token_ids)

    @property
    def settings(self) -> str:
        """What decides tokens and pixel values beside the pictures, in JSON."""
        return str(self.processor.to_json_string())

    def expand(self, path: str) -> str:
        """Return the text that the processor puts in the place of the placeholder for this picture.

        It depends on the picture's size alone, so that a blank one of this size tells it. The model checks in every
        pass that there are as many tokens as features of the pictures.

        Raises:
            BadPictureError: the picture cannot be used.
            MiloraError: the processor does not say what it puts there.
        """
        size = measure_picture(path)
        if size not in self._expansions:
            processed = self.processor.image_processor([Image.new("RGB", size)])
            try:
                self._expansions[size] = str(self.processor.replace_image_token(processed, image_idx=0))
            except NotImplementedError as error:
                raise MiloraError(
                    f"{type(self.processor).__name__} does not say which tokens stand for a picture, so that rows with "
                    "pictures cannot be prepared for its model",
                    "use a model such as LLaVA, Qwen-VL, Gemma 3, InternVL, or SmolVLM",
                ) from error
        return self._expansions[size]

    def read(self, paths: Sequence[str]) -> dict[str, Any]:
        """Return what a model is given for these pictures beside its tokens; `paths` has at least one.

        Raises:
            BadPictureError: a picture cannot be used.
        """
        read = self.processor.image_processor([open_picture(path) for path in paths], return_tensors="pt")
        return {name: value for name, value in read.items() if name not in self.processor.unused_input_names}

    def mark(self, ids: list[list[int]]) -> dict[str, list[list[int]]]:
        """Return what some models are also given for rows of tokens: which of them stand for a picture."""
        if not self.processor.return_mm_token_type_ids:
            return {}
        # Gemma 3's own processor renames them, and adds that name to what the tokenizer makes.
        own, renamed = self.processor.tokenizer.model_input_names, "token_type_ids"
        is_renamed = self.processor.model_input_names.count(renamed) > own.count(renamed)
        return {renamed if is_renamed else "mm_token_type_ids": self.processor.create_mm_token_type_ids(ids)}
