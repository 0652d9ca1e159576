"""Rows of the published benchmarks about pictures → LLaVA-1.5's question about each picture."""

import binascii
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from milora.data.conversation import Conversation, Image, Message, Text
from milora.data.kept_pictures import keep_picture
from milora.method.errors import MiloraError

SHORT = "\nAnswer the question using a single word or phrase."
UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
LETTER = "\nAnswer with the option's letter from the given choices directly."
OPTIONS = "ABCD"
ABSENT = ("", "nan", "none")  # cells that LLaVA's code leaves out
ROUND = 1_000_000  # MMBench's rotation k of a question has k million added to its index
POPE_SPLITS = ("random", "popular", "adversarial")

Tables = list[list[Any]]  # the rows of each file


def ask(question: str, answer: str, picture: Path | None, /, **fields: str) -> Conversation:
    """Return a question about a picture, which is shown before it, and its answer."""
    shown = () if picture is None else (Image(str(picture)),)
    return Conversation(
        (Message("user", (*shown, Text(question))), Message("assistant", (Text(answer),))),
        fields,
    )


def _list_answers(answers: Sequence[Any]) -> str:
    if not answers or not all(isinstance(answer, str) for answer in answers):
        raise TypeError("people's answers are not a list of texts")
    return json.dumps(answers, ensure_ascii=False)


def read_vqav2(tables: Tables, pictures: Path) -> Iterator[Conversation]:
    (questions,), (annotations,) = tables
    known = {annotation["question_id"]: annotation for annotation in annotations["annotations"]}
    for row in questions["questions"]:
        annotation = known[row["question_id"]]
        yield ask(
            row["question"] + SHORT,
            annotation["multiple_choice_answer"],
            pictures / f"COCO_val2014_{row['image_id']:012d}.jpg",
            key=str(row["question_id"]),
            answers=_list_answers([answer["answer"] for answer in annotation["answers"]]),
            type=annotation["answer_type"],
        )


def read_vqav2_test(tables: Tables, pictures: Path) -> Iterator[Conversation]:
    for row in tables[0][0]["questions"]:
        picture = pictures / f"COCO_test2015_{row['image_id']:012d}.jpg"
        yield ask(row["question"] + SHORT, "", picture, key=str(row["question_id"]))


def read_gqa(tables: Tables, pictures: Path) -> Iterator[Conversation]:
    ((questions,),) = tables
    for key, row in questions.items():
        yield ask(row["question"] + SHORT, row["answer"], pictures / f"{row['imageId']}.jpg", key=key)


def read_vizwiz(tables: Tables, pictures: Path) -> Iterator[Conversation]:
    (rows,) = tables
    for row in rows:
        answers = [answer["answer"] for answer in row["answers"]]
        ((gold, _),) = Counter(answers).most_common(1)
        question = row["question"] + UNANSWERABLE + SHORT
        yield ask(question, gold, pictures / row["image"], answers=_list_answers(answers), type=row["answer_type"])


def read_vizwiz_test(tables: Tables, pictures: Path) -> Iterator[Conversation]:
    (rows,) = tables
    for row in rows:
        yield ask(row["question"] + UNANSWERABLE + SHORT, "", pictures / row["image"], image=row["image"])


def read_scienceqa(tables: Tables, pictures: Path) -> Iterator[Conversation]:
    (rows,) = tables
    for row in rows:
        question, answer = (turn["value"] for turn in row["conversations"])
        picture = pictures / row["image"] if "image" in row else None
        yield ask(question.replace("<image>", "").strip() + LETTER, answer, picture, key=row["id"])


def read_textvqa(tables: Tables, pictures: Path) -> Iterator[Conversation]:
    """LLaVA's questions name the OCR tokens; their question_id is that of the picture, which may have several."""
    questions, annotations = tables
    known = {(row["image_id"], row["question"].lower()): row["answers"] for row in annotations}
    for row in questions:
        answers = known[row["question_id"], row["text"].split("\n")[0].lower()]
        ((gold, _),) = Counter(answers).most_common(1)
        yield ask(row["text"], gold, pictures / row["image"], answers=_list_answers(answers))


def read_pope(tables: Tables, pictures: Path) -> Iterator[Conversation]:
    labels = {"yes": "yes", "no": "no"}  # no others
    for split, rows in zip(POPE_SPLITS, tables, strict=True):
        for row in rows:
            yield ask(row["text"] + SHORT, labels[row["label"]], pictures / row["image"], split=split)


def read_mmbench(tables: Tables, _: Path) -> Iterator[Conversation]:
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
            f"MMBench's row {row['index']} has no picture in base64: {error}",
            "use the published table (docs/vision_benchmarks.md)",
        ) from error
