"""Pictures: files that cannot be used, and conversations with pictures as tokens."""

import inspect
import tracemalloc
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image as PilImage
from transformers import (
    AutoTokenizer,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    PaliGemmaConfig,
)

from milora.data.conversation import Conversation, Image, Message, Text
from milora.data.pictures import BadPictureError, check_pictures, measure_picture, open_picture
from milora.data.processor import Pictures
from milora.data.templates import resolve_template
from milora.method.errors import MiloraError
from milora.models.base import load_model, load_tokenizer
from milora.models.vision import load_processor, takes_pictures
from milora.run.sections import ModelSection
from tests.pictures import draw


def write_huge(path: Path) -> str:
    """20,000 x 20,000 pixels in a few kilobytes: 1.2 GB in RGB."""
    PilImage.new("1", (20_000, 20_000)).save(path)
    return str(path)


@pytest.fixture
def bad(tmp_path: Path) -> dict[str, str]:
    whole = Path(draw(tmp_path / "whole.jpg", size=(300, 200))).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    png = bytearray(Path(draw(tmp_path / "whole.png", size=(300, 200))).read_bytes())
    png[60:90] = bytes(30)
    (tmp_path / "broken.png").write_bytes(png)
    (tmp_path / "fake.jpg").write_text("<html>404 Not Found</html>")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "program.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    write_huge(tmp_path / "huge.png")
    names = {
        "cut.jpg": "is damaged",
        "broken.png": "is damaged",
        "fake.jpg": "is not a picture",
        "empty.png": "is not a picture",
        "program.png": "is not a picture",
        "huge.png": "more than 89,478,485 pixels",
        "missing.png": "does not exist",
    }
    return {str(tmp_path / name): reason for name, reason in names.items()}


def test_a_file_that_cannot_be_used_is_refused_with_its_path_and_the_reason(bad):
    good = draw(Path(next(iter(bad))).with_name("good.png"))
    found = check_pictures([good, *bad])
    assert found.keys() == bad.keys()
    for path, reason in bad.items():
        assert path in str(found[path]) and reason in str(found[path])
        with pytest.raises(BadPictureError, match=reason):
            open_picture(path)


def test_any_damage_is_a_bad_picture_or_a_picture(tmp_path):
    whole = Path(draw(tmp_path / "whole.webp", size=(64, 48))).read_bytes()
    for name in ("whole.png", "whole.jpg", "whole.gif", "whole.tiff", "whole.bmp"):
        whole = Path(draw(tmp_path / name, size=(64, 48))).read_bytes()
        for place in range(4, len(whole), max(1, len(whole) // 40)):
            file = tmp_path / f"damaged{place}-{name}"
            file.write_bytes(whole[:place] + b"\xff\x00\x7f" + whole[place + 3 :])
            try:
                open_picture(str(file))
            except BadPictureError:
                continue


def test_a_gigantic_picture_takes_no_memory(tmp_path):
    path = write_huge(tmp_path / "huge.png")
    tracemalloc.start()
    with pytest.raises(BadPictureError):
        measure_picture(path)
    with pytest.raises(BadPictureError):
        open_picture(path)
    assert check_pictures([path])
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
    gray = PilImage.new("L", (8, 8), 128)
    picture = PilImage.new("I;16", (8, 8), 128 * 256) if mode == "I;16" else gray.convert("RGB").convert(mode)
    picture.save(path)
    opened = open_picture(str(path))
    assert opened.mode == "RGB"
    if mode not in ("1", "P"):  # which have other colors
        assert max(abs(value - 128) for value in opened.getpixel((3, 3))) <= 3


def test_pictures_are_turned_as_their_exif_says(tmp_path):
    exif = PilImage.Exif()
    exif[0x0112] = 6
    PilImage.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    path = str(tmp_path / "a.jpg")
    assert open_picture(path).size == measure_picture(path) == (20, 30)


@pytest.fixture(scope="module", params=["tiny_llava", "tiny_qwen_vl"])
def section(request: pytest.FixtureRequest) -> ModelSection:
    return ModelSection(name=str(request.getfixturevalue(request.param)), dtype="float32")


def converse(*paths: str) -> Conversation:
    first = Message("user", (Image(paths[0]), Text("What is <image>, <|image_pad|> and <|im_end|>?")))
    later = (
        Message("user", (Text("And "), *map(Image, paths[1:]), Text("this?"))),
        Message("assistant", (Text("Blue."),)),
    )
    return Conversation((first, Message("assistant", (Text("Red."),)), *later))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chat", "vicuna"])
def test_a_row_has_the_tokens_that_the_processor_makes_of_each_picture(section, tmp_path, name):
    assert takes_pictures(section)
    tokenizer, pictures = load_tokenizer(section), Pictures(partial(load_processor, section))
    template = resolve_template(name, lambda: tokenizer, pictures)
    row = converse(draw(tmp_path / "a.png"), draw(tmp_path / "b.jpg", "blue", (64, 20)))
    encoded = template.encode(tokenizer, row)
    trained = tokenizer.decode([token for token, keep in zip(encoded.ids, encoded.trained, strict=True) if keep])
    assert trained.replace(" ", "") == "Red.<|im_end|>Blue.<|im_end|>"
    prompt = template.encode_prompt(tokenizer, row.prompt)
    assert encoded.ids[: len(prompt)] == prompt
    # The model counts features and tokens itself.
    inputs = pictures.read(row.images) | {key: torch.tensor(rows) for key, rows in pictures.mark([encoded.ids]).items()}
    ids = torch.tensor([encoded.ids])
    assert torch.isfinite(load_model(section)(input_ids=ids, labels=ids, **inputs).loss)


@pytest.mark.slow
@pytest.mark.parametrize("content", ["{{ message.role + '\\n' + message.content }}", "{{ message.content }}"])
def test_a_chat_template_that_reads_text_alone_is_given_text(section, tmp_path, content):
    """Broken by: a list of parts that is written out as it is, or added to a text."""
    tokenizer, pictures = load_tokenizer(section), Pictures(partial(load_processor, section))
    tokenizer.chat_template = (
        f"{{% for message in messages %}}<|im_start|>{content}<|im_end|>{{% endfor %}}"
        f"{{% if add_generation_prompt %}}<|im_start|>{'assistant' + chr(10) if 'role' in content else ''}{{% endif %}}"
    )
    template = resolve_template("chat", lambda: tokenizer, pictures)
    said = tokenizer.decode(template.encode(tokenizer, Conversation.of_turn("Which?", "Red.")).ids)
    assert "Which?<|im_end|>" in said and "type" not in said
    row = Conversation(
        (Message("user", (Image(draw(tmp_path / "a.png")), Text("Which?"))), *converse("").messages[1:2])
    )
    ids = template.encode(tokenizer, row).ids
    assert pictures.tokens & set(ids) and "Which?" in tokenizer.decode(ids)


def test_a_text_model_refuses_pictures(small_model, tmp_path):
    tokenizer = load_tokenizer(ModelSection(name=str(small_model)))
    assert not takes_pictures(ModelSection(name=str(small_model)))
    row = converse(draw(tmp_path / "a.png"))
    for name in ("chat", "vicuna", "plain"):
        with pytest.raises(MiloraError, match="picture"):
            resolve_template(name, lambda: tokenizer).encode(tokenizer, row)


def test_an_orientation_that_does_not_exist_turns_nothing(tmp_path):
    for orientation in (1, 6, 9):
        exif = PilImage.Exif()
        exif[0x0112] = orientation
        PilImage.new("RGB", (40, 24)).save(tmp_path / "turned.jpg", exif=exif)
        assert measure_picture(str(tmp_path / "turned.jpg")) == open_picture(str(tmp_path / "turned.jpg")).size


def test_an_error_without_words_is_named_by_its_type(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise EOFError

    path = draw(tmp_path / "one.png")
    monkeypatch.setattr(PilImage.Image, "convert", fail)
    with pytest.raises(BadPictureError, match="is damaged: EOFError"):
        open_picture(path)


def test_gemma_is_told_which_tokens_see_each_other(tiny_llava):
    """Broken by: marks under a name that the model does not read, so that pictures are attended to causally."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llava)
    tokenizer.boi_token, tokenizer.eoi_token, tokenizer.image_token = "<|im_start|>", "<|im_end|>", "<image>"
    tokenizer.boi_token_id, tokenizer.image_token_id = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<image>"])
    processor = Gemma3Processor(Gemma3ImageProcessorPil(), tokenizer, image_seq_length=4)
    pictures = Pictures(lambda: processor)
    seen = tokenizer.image_token_id
    assert pictures.mark([[1, seen, seen, 2]]) == {"token_type_ids": [[0, 1, 1, 0]]}
    assert "token_type_ids" in inspect.signature(Gemma3ForConditionalGeneration.forward).parameters


def test_a_model_that_reads_prompts_in_both_directions_is_refused(tmp_path):
    PaliGemmaConfig().save_pretrained(tmp_path)
    with pytest.raises(MiloraError, match="is a PaliGemma, whose prompts are read in both directions"):
        load_processor(ModelSection(name=str(tmp_path)))
