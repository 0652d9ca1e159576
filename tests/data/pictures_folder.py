"""A data_dir in the published layout of the benchmarks about pictures, from LLaVA's files in MILORA_TEST_DATA."""

import base64
import csv
import gzip
import json
import shutil
from pathlib import Path
from typing import Any

from milora.data.picture_rows import LETTER, SHORT, UNANSWERABLE

TINY = base64.b64encode(b"not a real picture").decode()


def _read(path: Path) -> str:
    return (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()


def read_json(path: Path) -> Any:
    return json.loads(_read(path))


def read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in _read(path).split("\n") if line]


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def make_pictures_folder(vision: Path, folder: Path) -> Path:
    """Write what users download, of as many questions as are stored; VQAv2's rows are those of train2014."""
    shutil.copytree(vision / "pope", folder / "pope" / "coco", ignore=shutil.ignore_patterns("*.gz"))
    for name, stored in (
        ("v2_OpenEnded_mscoco_val2014_questions", "questions"),
        ("v2_mscoco_val2014_annotations", "annotations"),
    ):
        _write(folder / "vqav2" / f"{name}.json", read_json(vision / "vqav2" / f"{stored}_2962.json.gz"))
    _write(folder / "scienceqa/llava_test_CQM-A.json", read_json(vision / "scienceqa/llava_test_CQM-A.json.gz"))
    _write_textvqa(vision / "textvqa", folder / "textvqa")
    _write_vizwiz(vision / "vizwiz", folder / "vizwiz")
    asked = read_lines(vision / "gqa/llava_gqa_testdev_balanced_first500.jsonl")
    rows = {
        row["question_id"]: {
            "question": row["text"].removesuffix(SHORT),
            "imageId": row["image"].removesuffix(".jpg"),
            "answer": "yes",  # the gold is not stored
        }
        for row in asked
    }
    _write(folder / "gqa/data/testdev_balanced_questions.json", rows)
    _write_mmbench(vision / "mmbench", folder / "mmbench")
    return folder


def _write_textvqa(stored: Path, folder: Path) -> None:
    folder.mkdir()
    shutil.copy(stored / "llava_textvqa_val_v051_ocr_first1000.jsonl", folder / "llava_textvqa_val_v051_ocr.jsonl")
    questions = read_json(stored / "val_questions_vqa_format_first1000.json")["questions"]
    annotations = read_json(stored / "val_annotations_vqa_format_first1000.json.gz")["annotations"]
    rows = [
        {
            "image_id": question["image_id"],
            "question": question["question"],
            "answers": [answer["answer"] for answer in annotation["answers"]],
        }
        for question, annotation in zip(questions, annotations, strict=True)
    ]
    _write(folder / "TextVQA_0.5.1_val.json", {"data": rows})


def _write_vizwiz(stored: Path, folder: Path) -> None:
    questions = read_json(stored / "val_questions_vqa_format_first500.json")["questions"]
    annotations = read_json(stored / "val_annotations_vqa_format_first500.json.gz")["annotations"]
    rows = [
        {
            "image": question["image_id"],
            "question": question["question"],
            "answers": annotation["answers"],
            "answer_type": annotation["question_type"],
        }
        for question, annotation in zip(questions, annotations, strict=True)
    ]
    _write(folder / "val.json", rows)
    asked = read_lines(stored / "llava_test_first500.jsonl")
    test = [{"image": row["image"], "question": row["text"].removesuffix(UNANSWERABLE + SHORT)} for row in asked]
    _write(folder / "test.json", test)


def _write_mmbench(stored: Path, folder: Path) -> None:
    """The hint, which the stored table lacks, is what the stored prompt has before the question."""
    folder.mkdir()
    with (stored / "upload_llava-v1.5-13b_part.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    asked = {row["question_id"]: row["prompt"] for row in read_lines(stored / "answers_llava-v1.5-13b_part.jsonl.gz")}
    columns = ["index", "question", "hint", *"ABCD", "answer", "category", "image", "source", "l2-category", "split"]
    with (folder / "mmbench_dev_20230712.tsv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            before = asked[int(row["index"])].split("\nA. ")[0].removesuffix(row["question"])
            cells = {key: value for key, value in row.items() if key != "prediction"}
            writer.writerow({**cells, "hint": before.removesuffix("\n"), "image": TINY})


def stored_prompts(vision: Path) -> dict[str, list[str]]:
    """LLaVA's questions as they are stored, in the order of the published files."""
    pope = read_lines(vision / "pope/llava_pope_test.jsonl.gz")
    scienceqa = read_lines(vision / "scienceqa/answers_llava-v1.5-13b_first300.jsonl")
    mmbench = read_lines(vision / "mmbench/answers_llava-v1.5-13b_part.jsonl.gz")
    files = {
        "gqa": "gqa/llava_gqa_testdev_balanced_first500.jsonl",
        "vizwiz_test": "vizwiz/llava_test_first500.jsonl",
        "textvqa": "textvqa/llava_textvqa_val_v051_ocr_first1000.jsonl",
    }
    return {
        **{name: [row["text"] for row in read_lines(vision / file)] for name, file in files.items()},
        "pope": [
            row["text"] for split in ("random", "popular", "adversarial") for row in pope if row["category"] == split
        ],
        "scienceqa": [row["prompt"].removeprefix("<image>\n") for row in scienceqa],
        "mmbench": [row["prompt"] + LETTER for row in sorted(mmbench, key=lambda row: row["question_id"] % 1_000_000)],
    }
