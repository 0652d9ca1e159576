"""The benchmarks about pictures: their published files in a folder, and LLaVA-1.5's question about each picture."""

import binascii
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from milora.data.conversation import Conversation, Image, Message, Text
from milora.data.files import read_rows
from milora.data.kept_pictures import keep_picture
from milora.data.pictures import check_pictures
from milora.data.published import Published, candidates
from milora.method.errors import MiloraError

SHORT = "\nAnswer the question using a single word or phrase."
UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
LETTER = "\nAnswer with the option's letter from the given choices directly."
OPTIONS = "ABCD"
ABSENT = ("", "nan", "none")  # cells that LLaVA's code leaves out
ROUND = 1_000_000  # MMBench's rotation k of a question has k million added to its index
POPE_SPLITS = ("random", "popular", "adversarial")

EVAL_ZIP = "eval.zip of LLaVA's docs/Evaluation.md"
VQA = "https://visualqa.org/download.html"
VIZWIZ = "https://vizwiz.cs.colorado.edu/VizWiz_final/vqa_data/Annotations.zip"
GQA = "https://cs.stanford.edu/people/dorarad/gqa/download.html"
TEXTVQA = "https://dl.fbaipublicfiles.com/textvqa/data/TextVQA_0.5.1_val.json"
POPE = "https://github.com/AoiDragon/POPE/tree/e3e39262c85a6a83f26cf5094022a782cb0df58d/output/coco"
MMBENCH = "https://download.openmmlab.com/mmclassification/datasets/mmbench/"

Tables = list[list[Any]]  # the rows of each file


@dataclass(frozen=True, slots=True)
class PictureSet:
    """`read` makes conversations of the rows of each of the `files` and the folder of `pictures` under a data_dir.

    Without a folder the pictures are in the rows.
    """

    files: tuple[Published, ...]
    pictures: str | None
    read: Callable[[Tables, Path], Iterator[Conversation]]


def read_picture_set(name: str, data_dir: str | None) -> list[Conversation]:
    """Return the questions of a set, with the paths of their pictures.

    Raises:
        MiloraError: there is no data_dir, one of the files is not there, or its rows have another form.
    """
    pictures = PICTURE_SETS[name]
    files = find_picture_files(name, data_dir)
    assert data_dir is not None
    tables = [list(read_rows(file)) for file in files]
    try:
        return list(pictures.read(tables, Path(data_dir) / (pictures.pictures or "")))
    except (KeyError, TypeError, IndexError) as error:
        raise MiloraError(
            f"the rows of {name} in {', '.join(map(str, files))} have another form than the published ones: "
            f"{type(error).__name__} {error}",
            f"use the published files, from {' and '.join(dict.fromkeys(file.address for file in pictures.files))}",
        ) from error


def find_picture_files(name: str, data_dir: str | None) -> list[Path]:
    """Return the files of a set under `data_dir`.

    Raises:
        MiloraError: there is no data_dir, or a file is not there.
    """
    files = PICTURE_SETS[name].files
    if data_dir is None:
        raise MiloraError(
            f"{name} is read from local files, {', '.join(file.files[0] for file in files)} and its pictures",
            "set evaluation.data_dir (--data-dir) to the folder that contains them (docs/vision_benchmarks.md)",
        )
    return [_find(file, data_dir) for file in files]


def _find(published: Published, data_dir: str) -> Path:
    paths = (path for name in published.files for path in candidates(name, data_dir))
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        raise MiloraError(
            f"{Path(data_dir) / published.files[0]} does not exist",
            f"get it from {published.address} (docs/vision_benchmarks.md)",
        )
    return found


def identify_pictures(name: str, data_dir: str) -> str:
    """Return a digest of the names, sizes and times of change of a set's pictures: there may be 100,000 of them."""
    folder = Path(data_dir) / (PICTURE_SETS[name].pictures or "no such folder")
    states = ((path.relative_to(folder), path.stat()) for path in sorted(folder.rglob("*")) if path.is_file())
    text = json.dumps([(str(path), state.st_size, state.st_mtime_ns) for path, state in states])
    return hashlib.sha256(text.encode()).hexdigest()


def check_usable(name: str, images: Sequence[str]) -> None:
    """Raise unless each of these pictures is there, and is a whole picture."""
    faults = [fault for path in images if (fault := find_fault(path)) is not None]
    if faults:
        raise MiloraError(
            f"{len(faults)} of {len(images)} pictures of {name} cannot be used: {'; '.join(faults[:3])}",
            "complete the folder of pictures (docs/vision_benchmarks.md)",
        )


def find_fault(path: str) -> str | None:
    """Return what is wrong with a picture; it is looked at again only when it has changed."""
    file = Path(path)
    if not file.is_file():
        return f"{path} does not exist"
    state = file.stat()
    return _find_fault(path, state.st_size, state.st_mtime_ns)


@cache
def _find_fault(path: str, size: int, modified: int) -> str | None:
    found = check_pictures([path])
    return str(found[path]) if found else None


def ask(question: str, answer: str, picture: Path | None, /, **fields: str) -> Conversation:
    """Return a question about a picture, which is shown before it, and its answer."""
    shown = () if picture is None else (Image(str(picture)),)
    return Conversation(
        (Message("user", (*shown, Text(question))), Message("assistant", (Text(answer),))),
        fields,
    )


def _list_answers(answers: Sequence[Any]) -> str:
    return json.dumps([answer["answer"] for answer in answers], ensure_ascii=False)


def _read_vqav2(tables: Tables, pictures: Path) -> Iterator[Conversation]:
    (questions,), (annotations,) = tables
    known = {annotation["question_id"]: annotation for annotation in annotations["annotations"]}
    for row in questions["questions"]:
        annotation = known[row["question_id"]]
        yield ask(
            row["question"] + SHORT,
            annotation["multiple_choice_answer"],
            pictures / f"COCO_val2014_{row['image_id']:012d}.jpg",
            key=str(row["question_id"]),
            answers=_list_answers(annotation["answers"]),
            type=annotation["answer_type"],
        )


def _read_vqav2_test(tables: Tables, pictures: Path) -> Iterator[Conversation]:
    for row in tables[0][0]["questions"]:
        picture = pictures / f"COCO_test2015_{row['image_id']:012d}.jpg"
        yield ask(row["question"] + SHORT, "", picture, key=str(row["question_id"]))


def _read_gqa(tables: Tables, pictures: Path) -> Iterator[Conversation]:
    ((questions,),) = tables
    for key, row in questions.items():
        yield ask(row["question"] + SHORT, row["answer"], pictures / f"{row['imageId']}.jpg", key=key)


def _read_vizwiz(tables: Tables, pictures: Path) -> Iterator[Conversation]:
    (rows,) = tables
    for row in rows:
        answers = [answer["answer"] for answer in row["answers"]]
        ((gold, _),) = Counter(answers).most_common(1)
        question = row["question"] + UNANSWERABLE + SHORT
        yield ask(
            question, gold, pictures / row["image"], answers=_list_answers(row["answers"]), type=row["answer_type"]
        )


def _read_vizwiz_test(tables: Tables, pictures: Path) -> Iterator[Conversation]:
    (rows,) = tables
    for row in rows:
        yield ask(row["question"] + UNANSWERABLE + SHORT, "", pictures / row["image"], image=row["image"])


def _read_scienceqa(tables: Tables, pictures: Path) -> Iterator[Conversation]:
    (rows,) = tables
    for row in rows:
        question, answer = (turn["value"] for turn in row["conversations"])
        picture = pictures / row["image"] if "image" in row else None
        yield ask(question.replace("<image>", "").strip() + LETTER, answer, picture, key=row["id"])


def _read_textvqa(tables: Tables, pictures: Path) -> Iterator[Conversation]:
    """LLaVA's questions name the OCR tokens; their question_id is that of the picture, which may have several."""
    questions, annotations = tables
    known = {(row["image_id"], row["question"].lower()): row["answers"] for row in annotations}
    for row in questions:
        answers = known[row["question_id"], row["text"].split("\n")[0].lower()]
        ((gold, _),) = Counter(answers).most_common(1)
        yield ask(row["text"], gold, pictures / row["image"], answers=json.dumps(answers, ensure_ascii=False))


def _read_pope(tables: Tables, pictures: Path) -> Iterator[Conversation]:
    for split, rows in zip(POPE_SPLITS, tables, strict=True):
        for row in rows:
            yield ask(row["text"] + SHORT, row["label"], pictures / row["image"], split=split)


def _read_mmbench(tables: Tables, _: Path) -> Iterator[Conversation]:
    """The rotations of a question follow each other. An option that is empty ends the list of options."""
    (rows,) = tables
    rotations = Counter(int(row["index"]) % ROUND for row in rows)  # fewer than options if the last one stays last
    for row in sorted(rows, key=lambda row: int(row["index"]) % ROUND):
        given = [row[letter] for letter in OPTIONS]
        count = next((place for place, option in enumerate(given) if option.lower() in ABSENT), len(given))
        options = dict(zip(OPTIONS, given[:count], strict=False))
        hint = "" if row["hint"].lower() in ABSENT else f"{row['hint']}\n"
        listed = "".join(f"\n{letter}. {option}" for letter, option in options.items())
        yield ask(
            hint + row["question"] + listed + LETTER,
            row.get("answer", ""),
            _unpack(row),
            index=row["index"],
            question=row["question"],
            options=json.dumps(options, ensure_ascii=False),
            split=row["split"],
            rotations=str(rotations[int(row["index"]) % ROUND]),
        )


def _unpack(row: dict[str, str]) -> Path:
    """The file that the row's picture becomes, which the table contains in base64."""
    try:
        return keep_picture(binascii.a2b_base64(row["image"], strict_mode=True))
    except binascii.Error as error:
        raise MiloraError(
            f"MMBench's row {row['index']} has no picture in base64: {error}", f"use the table from {MMBENCH}"
        ) from error


def _pope_file(split: str) -> Published:
    name = f"coco_pope_{split}.json"
    return Published((f"pope/coco/{name}", f"pope/{name}"), f"{POPE}/{name}")


def _mmbench(split: str) -> PictureSet:
    name = f"mmbench_{split}_20230712.tsv"
    return PictureSet((Published((f"mmbench/{name}",), MMBENCH + name),), None, _read_mmbench)


PICTURE_SETS = {
    "vqav2": PictureSet(
        (
            Published(("vqav2/v2_OpenEnded_mscoco_val2014_questions.json",), VQA),
            Published(("vqav2/v2_mscoco_val2014_annotations.json",), VQA),
        ),
        "vqav2/val2014",
        _read_vqav2,
    ),
    "vqav2_test": PictureSet(
        (
            Published(("vqav2/v2_OpenEnded_mscoco_test-dev2015_questions.json",), VQA),
            Published(("vqav2/v2_OpenEnded_mscoco_test2015_questions.json",), VQA),
        ),
        "vqav2/test2015",
        _read_vqav2_test,
    ),
    "gqa": PictureSet(
        (Published(("gqa/data/testdev_balanced_questions.json", "gqa/testdev_balanced_questions.json"), GQA),),
        "gqa/data/images",
        _read_gqa,
    ),
    "vizwiz": PictureSet((Published(("vizwiz/val.json",), VIZWIZ),), "vizwiz/val", _read_vizwiz),
    "vizwiz_test": PictureSet((Published(("vizwiz/test.json",), VIZWIZ),), "vizwiz/test", _read_vizwiz_test),
    "scienceqa": PictureSet(
        (Published(("scienceqa/llava_test_CQM-A.json",), EVAL_ZIP),), "scienceqa/images/test", _read_scienceqa
    ),
    "textvqa": PictureSet(
        (
            Published(("textvqa/llava_textvqa_val_v051_ocr.jsonl",), EVAL_ZIP),
            Published(("textvqa/TextVQA_0.5.1_val.json",), TEXTVQA),
        ),
        "textvqa/train_images",
        _read_textvqa,
    ),
    "pope": PictureSet(tuple(_pope_file(split) for split in POPE_SPLITS), "pope/val2014", _read_pope),
    "mmbench": _mmbench("dev"),
    "mmbench_test": _mmbench("test"),
}
