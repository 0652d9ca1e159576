"""Small sets of pictures inside PyPI packages: easy-VQA's drawn shapes, and scikit-learn's written digits."""

import importlib.util
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image as Pillow

from milora.data.conversation import Conversation, Image, Message, Text
from milora.data.kept_pictures import keep_picture
from milora.data.sets import Split
from milora.method.errors import MiloraError

EASY_VQA = "easy-vqa==1.0"
SIDE = 64  # pixels of easy-VQA's pictures; digits of 8 x 8 pixels are enlarged to that
DIGIT = "which digit is this?"


def read_easy_vqa(split: Split) -> list[Conversation]:
    """Return questions about shapes and colors, answered by one word, in an order that does not change.

    Raises:
        MiloraError: the package is not installed, or has no such split.
    """
    package = importlib.util.find_spec("easy_vqa")
    if package is None or package.origin is None:
        raise MiloraError("easy_vqa needs a PyPI package that is not installed", f"pip install --no-deps {EASY_VQA}")
    _check("easy_vqa", split)
    folder = Path(package.origin).parent / "data" / split
    questions = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
    return _shuffled(
        [_ask(folder / "images" / f"{number}.png", question, answer) for question, answer, number in questions]
    )


def read_digits(split: Split) -> list[Conversation]:
    """Return the question which digit a picture shows; every fourth picture is in the test split.

    Raises:
        MiloraError: scikit-learn is not installed, or there is no such split.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise MiloraError("digits needs scikit-learn, which is not installed", "pip install 'milora[eval]'")
    from sklearn.datasets import load_digits

    _check("digits", split)
    digits = load_digits()
    pairs = list(zip(digits.images, digits.target, strict=True))
    chosen = [pair for index, pair in enumerate(pairs) if (index % 4 == 3) == (split == "test")]
    return _shuffled([_ask(_draw(image), DIGIT, str(digit)) for image, digit in chosen])


def _check(name: str, split: Split) -> None:
    if split == "validation":
        raise MiloraError(f"{name} has no validation split", "it has train, test")


def _draw(gray: Any) -> Path:
    """A digit of 8 x 8 numbers from 0 to 16 as a file."""
    buffer = io.BytesIO()
    small = Pillow.fromarray((255 - gray * 255 / 16).astype("uint8"))
    small.resize((SIDE, SIDE), Pillow.Resampling.BICUBIC).save(buffer, "PNG")
    return keep_picture(buffer.getvalue())


def _ask(picture: Path, question: str, answer: str) -> Conversation:
    messages = (Message("user", (Image(str(picture)), Text(question))), Message("assistant", (Text(answer),)))
    return Conversation(messages)


def _shuffled(rows: list[Conversation]) -> list[Conversation]:
    return random.Random(0).sample(rows, len(rows))


PACKAGED: dict[str, Callable[[Split], list[Conversation]]] = {
    "easy_vqa": read_easy_vqa,
    "digits": read_digits,
}
