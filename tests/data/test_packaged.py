"""Small sets of pictures inside PyPI packages.

Broken by: an order that changes from run to run, a row in both splits, a picture beside another one's question.
"""

import importlib.util

import pytest
from PIL import Image as Pillow

from milora.data.packaged import DIGIT, PACKAGED, read_digits, read_easy_vqa
from milora.data.pictures import open_picture
from milora.method.errors import MiloraError

needs_shapes = pytest.mark.skipif(importlib.util.find_spec("easy_vqa") is None, reason="easy-vqa is not installed")
needs_digits = pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="scikit-learn is not installed")
# As easy-VQA draws them.
COLORS = {"red": (255, 0, 0), "blue": (0, 0, 255)}


@pytest.mark.slow
@needs_shapes
def test_questions_about_shapes():
    train, test = read_easy_vqa("train"), read_easy_vqa("test")
    assert (len(train), len(test)) == (38_575, 9_673)
    assert len({row.answer for row in train}) == 13
    seen, unseen = ({path for row in rows for path in row.images} for rows in (train, test))
    assert (len(seen), len(unseen)) == (4000, 1000) and not seen & unseen
    assert read_easy_vqa("test") == test, "the order does not change"


@needs_shapes
def test_the_color_that_is_answered_is_in_the_picture():
    asked = [row for row in read_easy_vqa("test") if row.question == "what color is the shape?"]
    for answer, color in COLORS.items():
        row = next(row for row in asked if row.answer == answer)
        found = open_picture(row.images[0]).getcolors(64 * 64)
        nearest = min(sum(abs(one - other) for one, other in zip(pixel, color, strict=True)) for _, pixel in found)
        assert nearest < 150, (answer, found)


@pytest.mark.slow
@needs_digits
def test_digits(tmp_path, monkeypatch):
    monkeypatch.setattr("milora.data.kept_pictures.user_cache_path", lambda _: tmp_path)
    train, test = read_digits("train"), read_digits("test")
    assert (len(train), len(test)) == (1348, 449)
    assert {row.question for row in test} == {DIGIT} and {row.answer for row in test} == set("0123456789")
    assert not {path for row in train for path in row.images} & {path for row in test for path in row.images}
    assert read_digits("test") == test, "the order does not change"


@needs_digits
def test_the_digit_that_is_answered_is_in_the_picture(tmp_path, monkeypatch):
    from sklearn.datasets import load_digits

    monkeypatch.setattr("milora.data.kept_pictures.user_cache_path", lambda _: tmp_path)
    row = read_digits("test")[0]
    small = Pillow.open(row.images[0]).resize((8, 8), Pillow.Resampling.BOX)
    ink = [(255 - pixel) * 16 / 255 for pixel in small.tobytes()]
    digits = load_digits()
    distances = [
        sum(abs(one - other) for one, other in zip(ink, image.ravel(), strict=True)) for image in digits.images
    ]
    assert str(digits.target[distances.index(min(distances))]) == row.answer


@pytest.mark.parametrize(("name", "package"), [("easy_vqa", "easy_vqa"), ("digits", "sklearn")])
def test_a_split_or_a_package_that_is_not_there(name, package, monkeypatch):
    if importlib.util.find_spec(package):
        with pytest.raises(MiloraError, match=f"{name} has no validation split"):
            PACKAGED[name]("validation")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MiloraError, match="not installed .*pip install"):
        PACKAGED[name]("train")
