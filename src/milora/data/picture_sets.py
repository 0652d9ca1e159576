"""The benchmarks about pictures: where each is published, and its files and pictures in a folder."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from milora.data.conversation import Conversation
from milora.data.files import read_rows
from milora.data.picture_rows import (
    POPE_SPLITS,
    Tables,
    read_gqa,
    read_mmbench,
    read_pope,
    read_scienceqa,
    read_textvqa,
    read_vizwiz,
    read_vizwiz_test,
    read_vqav2,
    read_vqav2_test,
)
from milora.data.pictures import check_pictures
from milora.data.published import Published, look_for
from milora.method.errors import MiloraError

EVAL_ZIP = "eval.zip of LLaVA's docs/Evaluation.md"
VQA = "https://visualqa.org/download.html"
VIZWIZ = "https://vizwiz.cs.colorado.edu/VizWiz_final/vqa_data/Annotations.zip"
GQA = "https://cs.stanford.edu/people/dorarad/gqa/download.html"
TEXTVQA = "https://dl.fbaipublicfiles.com/textvqa/data/TextVQA_0.5.1_val.json"
POPE = "https://github.com/AoiDragon/POPE/tree/e3e39262c85a6a83f26cf5094022a782cb0df58d/output/coco"
MMBENCH = "https://download.openmmlab.com/mmclassification/datasets/mmbench/"


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
        MiloraError: data_dir is not set, a file is missing, or its rows have an unexpected format.
    """
    pictures = PICTURE_SETS[name]
    files = find_picture_files(name, data_dir)
    assert data_dir is not None
    tables = [list(read_rows(file)) for file in files]
    named = f"the rows of {name} in {', '.join(map(str, files))}"
    hint = f"use the published files, from {' and '.join(dict.fromkeys(file.address for file in pictures.files))}"
    try:
        rows = list(pictures.read(tables, Path(data_dir) / (pictures.pictures or "")))
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        raise MiloraError(
            f"{named} have another form than the published ones: {type(error).__name__} {error}", hint
        ) from error
    if not rows:
        raise MiloraError(f"{named} are none", hint)
    return rows


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
    found = look_for(published, data_dir)
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


def _pope_file(split: str) -> Published:
    name = f"coco_pope_{split}.json"
    return Published((f"pope/coco/{name}", f"pope/{name}"), f"{POPE}/{name}")


def _mmbench(split: str) -> PictureSet:
    name = f"mmbench_{split}_20230712.tsv"
    return PictureSet((Published((f"mmbench/{name}",), MMBENCH + name),), None, read_mmbench)


PICTURE_SETS = {
    "vqav2": PictureSet(
        (
            Published(("vqav2/v2_OpenEnded_mscoco_val2014_questions.json",), VQA),
            Published(("vqav2/v2_mscoco_val2014_annotations.json",), VQA),
        ),
        "vqav2/val2014",
        read_vqav2,
    ),
    "vqav2_test": PictureSet(
        (
            Published(("vqav2/v2_OpenEnded_mscoco_test-dev2015_questions.json",), VQA),
            Published(("vqav2/v2_OpenEnded_mscoco_test2015_questions.json",), VQA),
        ),
        "vqav2/test2015",
        read_vqav2_test,
    ),
    "gqa": PictureSet(
        (Published(("gqa/data/testdev_balanced_questions.json", "gqa/testdev_balanced_questions.json"), GQA),),
        "gqa/data/images",
        read_gqa,
    ),
    "vizwiz": PictureSet((Published(("vizwiz/val.json",), VIZWIZ),), "vizwiz/val", read_vizwiz),
    "vizwiz_test": PictureSet((Published(("vizwiz/test.json",), VIZWIZ),), "vizwiz/test", read_vizwiz_test),
    "scienceqa": PictureSet(
        (Published(("scienceqa/llava_test_CQM-A.json",), EVAL_ZIP),), "scienceqa/images/test", read_scienceqa
    ),
    "textvqa": PictureSet(
        (
            Published(("textvqa/llava_textvqa_val_v051_ocr.jsonl",), EVAL_ZIP),
            Published(("textvqa/TextVQA_0.5.1_val.json",), TEXTVQA),
        ),
        "textvqa/train_images",
        read_textvqa,
    ),
    "pope": PictureSet(tuple(_pope_file(split) for split in POPE_SPLITS), "pope/val2014", read_pope),
    "mmbench": _mmbench("dev"),
    "mmbench_test": _mmbench("test"),
}
