"""Rows with pictures: LLaVA's, and messages with image parts."""

import gzip
import json
from functools import partial
from itertools import groupby
from pathlib import Path

import pytest

from milora.data.conversation import Image, Text
from milora.data.formats import read_conversations
from milora.data.problems import BadRowError
from milora.data.processor import Pictures
from milora.data.templates import resolve_template
from milora.data.training_rows import load_training_rows
from milora.method.errors import MiloraError
from milora.models.base import load_tokenizer
from milora.models.vision import load_processor
from milora.run.sections import DataSection, ModelSection
from tests.pictures import draw


def llava(*turns: str, image: object = "a.png") -> dict[str, object]:
    roles = ("human", "gpt")
    said = [{"from": roles[index % 2], "value": turn} for index, turn in enumerate(turns)]
    return {"id": "1", "conversations": said} | ({} if image is None else {"image": image})


def parts(*content: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": list(content)}, {"role": "assistant", "content": "Red."}]}


TEXT, PICTURE = {"type": "text", "text": "What?"}, {"type": "image", "image": "a.png"}
GOOD = [
    (llava("<image>\nWhat?", "Red."), (Image("a.png"), Text("What?"))),
    (llava("What?\n<image>", "Red."), (Image("a.png"), Text("What?"))),
    (llava("<image>", "Red."), (Image("a.png"),)),
    (llava("<image><image>\nWhat?", "Red.", image=["a.png", "b.png"]), (Image("a.png"), Image("b.png"), Text("What?"))),
    (llava("What?", "Red."), (Image("a.png"), Text("What?"))),  # one question: it is about the picture
    (llava("What is <image>?", "Red.", image=None), (Text("What is <image>?"),)),  # text
    (parts(PICTURE, TEXT), (Image("a.png"), Text("What?"))),
    (parts(TEXT, {"type": "image", "path": "a.png"}), (Text("What?"), Image("a.png"))),
    (parts({"type": "image_url", "image_url": {"url": "a.png"}}, TEXT), (Image("a.png"), Text("What?"))),
    (parts({"type": "image"}, TEXT) | {"images": ["a.png"]}, (Image("a.png"), Text("What?"))),
    (parts({"type": "image"}, TEXT) | {"images": [{"path": "a.png", "bytes": None}]}, (Image("a.png"), Text("What?"))),
    ({"question": "What?", "answer": "Red.", "image": "a.png"}, (Image("a.png"), Text("What?"))),
]


@pytest.mark.parametrize(("row", "expected"), GOOD)
def test_a_picture_is_where_the_row_says(row, expected):
    (conversation,) = read_conversations(row)
    assert conversation.messages[0].parts == expected


BAD = [
    (llava("<image>\nWhat?", "Red.", image=None) | {"image": 7}, "not the path"),
    (llava("What?", "Red.", "And?", "Blue."), "names 1 pictures, and its messages have places for 0"),
    (llava("<image><image> What?", "Red."), "places for 2"),
    (llava("What?", "<image> Red."), "not the user's"),
    (llava("<image> What?", "Red.", image="https://example.org/a.png"), "an address"),
    (parts({"type": "image"}, TEXT), "names 0 pictures"),
    (parts({"type": "image", "image": {"bytes": "abc", "path": None}}, TEXT), "not the path"),
    (parts({"type": "video", "video": "a.mp4"}, TEXT), "only text and image parts"),
    (parts({"type": "image", "image": ""}, TEXT), "not the path"),
]


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_a_row_is_refused_whose_pictures_are_not_clear(row, reason):
    with pytest.raises(BadRowError, match=reason):
        read_conversations(row)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Twelve rows: one picture is missing, one is damaged, one is text; a picture is in two rows."""
    for index in range(9):
        draw(tmp_path / f"{index}.png")
    (tmp_path / "8.png").write_text("not a picture")
    names = [*(f"{index}.png" for index in range(9)), "missing.png", "8.png", None]
    lines = [
        llava("<image>\nWhat?" if name else "Hi.", f"Answer {index}.", image=name) for index, name in enumerate(names)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / "rows.jsonl"


def test_every_bad_picture_is_listed_with_its_rows(rows):
    with pytest.raises(MiloraError) as raised:
        load_training_rows(DataSection(name=str(rows), validation_rows=2))
    message = str(raised.value)
    assert "2 pictures of 3 rows" in message
    assert f"{rows}, row 9, {rows}, row 11" in message and f"{rows}, row 10" in message
    assert "is not a picture" in message and "does not exist" in message and "on_bad_row=drop" in message


def test_rows_with_bad_pictures_are_dropped_and_counted_only_when_asked(rows):
    found = load_training_rows(DataSection(name=str(rows), validation_rows=2, on_bad_row="drop"))
    assert (found.bad, len(found.train), len(found.held_out)) == (3, 7, 2)


def test_which_rows_are_held_out_does_not_depend_on_where_the_pictures_are(rows, tmp_path):
    def held_out(section: DataSection) -> list[str]:
        return [row[-1]["parts"][0]["text"] for row in load_training_rows(section).held_out["messages"]]

    here = DataSection(name=str(rows), validation_rows=3, on_bad_row="drop")
    elsewhere = tmp_path / "elsewhere" / tmp_path.name
    elsewhere.mkdir(parents=True)
    for file in tmp_path.glob("*.png"):
        (elsewhere / file.name).write_bytes(file.read_bytes())
    assert held_out(here) == held_out(here.model_copy(update={"image_dir": str(elsewhere)}))


def test_all_rows_of_a_part_of_llavas_mixture_are_read(data_dir):
    published = json.loads(gzip.decompress(Path(data_dir, "vision/llava_v1_5_mix_800.json.gz").read_bytes()))
    assert len(published) == 800
    for row in published:
        (conversation,) = read_conversations(row)
        assert conversation.images == (row["image"],)
        assert isinstance(conversation.messages[0].parts[0], Image)
        answers = [turn["value"] for turn in row["conversations"] if turn["from"] == "gpt"]
        assert [message.text for message in conversation.messages if message.role == "assistant"] == answers
        said = "".join(message.words for message in conversation.messages)
        assert "<image>" not in said


@pytest.mark.slow
def test_the_masks_of_llavas_mixture_are_exactly_the_assistants_turns(data_dir, tiny_llava, tmp_path):
    section = ModelSection(name=str(tiny_llava))
    tokenizer, pictures = load_tokenizer(section), Pictures(partial(load_processor, section))
    template = resolve_template("vicuna", lambda: tokenizer, pictures)
    picture = draw(tmp_path / "a.png")  # the published ones are not at hand
    for row in json.loads(gzip.decompress(Path(data_dir, "vision/llava_v1_5_mix_800.json.gz").read_bytes())):
        (conversation,) = read_conversations(row | {"image": picture})
        encoded = template.encode(tokenizer, conversation)
        assert sum(token in pictures.tokens for token in encoded.ids) == 16
        runs = groupby(zip(encoded.ids, encoded.trained, strict=True), lambda pair: pair[1])
        trained = [tokenizer.decode([token for token, _ in run]) for keep, run in runs if keep]
        answers = [turn["value"].strip() for turn in row["conversations"] if turn["from"] == "gpt"]
        assert [text.removesuffix(tokenizer.eos_token).strip() for text in trained] == answers
        assert all(text.endswith(tokenizer.eos_token) for text in trained)
