"""Thousands of bad inputs from one seed: each is refused by a MiloraError, or is read as what it says."""

import csv
import gzip
import io
import json
import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from milora import MiloraError
from milora.data.training_rows import load_training_rows
from milora.models.base import load_model, load_skeleton, load_tokenizer
from milora.run.recipe import RECIPES, Recipe, load_recipe, read_recipe, resolve_recipe
from milora.run.sections import DataSection, ModelSection
from milora.run.settings import Section
from milora.training.prepare import locate

pytestmark = pytest.mark.slow

SEED = 0  # another one tries other cases
NASTY = [
    *("", "null", "true", "-1", "0", "1", "2", "7", "-0.0", "0.5", "1e-3", "1e308", "1e400", ".inf", "-.inf", ".nan"),
    *("4294967295", "4294967296", "9" * 30, "9" * 5000, "0x10", "1_0", "12:30:45", "2020-02-30", "yes", "~", "=", "<<"),
    *("''", '"\\0"', '"\\ud800"', '"\\n"', "é😀", "x" * 300, "/" + "y" * 5000, "a/b", "../..", "/", ".", "~/x", "~x"),
    *("[]", "{}", "[[]]", "[null]", "[1, a]", "{a: b}", "{1: 2}", "[" * 50 + "]" * 50, "[" * 9999, "}", "a: b", "- a"),
    *("&a [*a]", "*a", "!!binary aGk=", "!!python/name:os.system x", "!!set {a}", "!!int x", "!!bool x", "!x y"),
    *("${oc.env:HOME}", "${seed}", "${", "\\${x}", "???", "[???]", "a,b", ",", "(", ".*", "auto", "sampled", "x.gguf"),
    *("x.yaml", "rows[1].jsonl", "*", "%s", "\t", "#", "'", '"', "|", "> x", "@", "`", "--- a", "...", "a\0b", "\x07"),
]


def list_keys(schema: type[Section], prefix: str = "") -> Iterator[str]:
    for key, field in schema.model_fields.items():
        yield prefix + key
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from list_keys(field.annotation, f"{prefix}{key}.")


def attempt(case: str, read: Callable[[], Any]) -> str | None:
    """What is wrong with how a case ends, None if nothing is."""
    try:
        read()
    except MiloraError as error:
        return (
            None if error.message and error.hint and "Value error" not in error.message else f"{case[:99]}: {error!r}"
        )
    except Exception as error:  # noqa: BLE001  what is looked for
        return f"{case[:99]}: {type(error).__name__}: {str(error)[:300]}"
    return None


def check(cases: Iterable[tuple[str, Callable[[], Any]]], least: int) -> None:
    found = [attempt(case, read) for case, read in cases]
    faults = list(filter(None, found))
    assert len(found) >= least and not faults, f"{len(faults)} of {len(found)}:\n" + "\n".join(faults[:40])


def read_back(recipe: Recipe, folder: Path) -> None:
    """What was accepted means the same when it is written and read, and its run can be located."""
    for every_key in (False, True):
        (folder / "again.yaml").write_text(recipe.to_yaml(every_key=every_key), encoding="utf-8")
        assert load_recipe(str(folder / "again.yaml")) == recipe
    locate(recipe, folder)


def damage(content: bytes, draw: random.Random) -> bytes:
    """A file as editors, transfers and copies leave it."""
    at, length = draw.randrange(len(content) + 1), draw.randrange(1, 20)
    noise = draw.choice(
        [b"\0", b"\xff\xfe", b"[" * 99, b"{", b'"', b"\n", b"null", b"NaN", b"\xe9", b"- ", b": ", b"1e999"]
    )
    return draw.choice(
        [
            content[:at],
            content[at:],
            content[:at] + content[at + length :],
            content[:at] + noise + content[at:],
            content[:at] + draw.randbytes(length) + content[at + length :],
            content[:at] + bytes([content[at - 1] ^ 1 << draw.randrange(8)]) + content[at + 1 :],
            content[:at] + content[max(0, at - 40) :],
            noise,
        ]
    )


def test_overrides(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings, keys = read_recipe("quickstart"), [*list_keys(Recipe), "", ".", "a..b", "x[0]", "seed.x", "${seed}"]
    cases = [f"{key}={value}" for key in keys for value in NASTY]
    check(
        (
            (case, lambda case=case: read_back(resolve_recipe("quickstart", settings, [case]), tmp_path))
            for case in random.Random(SEED + 1).sample(cases, 2000)
        ),
        least=2000,
    )


def test_recipe_files(tmp_path):
    draw, shipped = random.Random(SEED + 2), sorted(RECIPES.glob("*.yaml"))
    file = tmp_path / "recipe.yaml"

    def read(content: bytes) -> None:
        file.write_bytes(content)
        read_back(load_recipe(str(file)), tmp_path)

    contents = [damage(draw.choice(shipped).read_bytes(), draw) for _ in range(300)]
    check(((repr(content), lambda content=content: read(content)) for content in contents), least=300)


def make_data_files(folder: Path) -> list[Path]:
    """The same rows in every format."""
    rows = [{"question": f"What is {i}?", "answer": f'It is "{i}", é.\n'} for i in range(8)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    table = io.StringIO()
    writer = csv.DictWriter(table, ["question", "answer"])
    writer.writeheader()
    writer.writerows(rows)
    chats = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}] * 4
    contents = {
        "a.json": json.dumps(rows).encode(),
        "b.jsonl": lines,
        "c.csv": table.getvalue().encode(),
        "d.tsv": table.getvalue().replace(",", "\t").encode(),
        "e.jsonl.gz": gzip.compress(lines),
        "f.jsonl.zst": pyarrow.compress(lines, "zstd", asbytes=True),
        "g.json": json.dumps({"data": chats}).encode(),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "h.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(chats), folder / "i.parquet")
    return sorted(folder.iterdir())


def read_data(file: Path) -> str | None:
    def read() -> None:
        rows = load_training_rows(DataSection(name=str(file), validation_rows=0)).train
        for row in rows:
            assert row["messages"] and all(message["role"] and message["parts"] for message in row["messages"])

    return attempt(f"{file.name} {file.read_bytes()!r}", read)


def test_data_files(tmp_path):
    draw = random.Random(SEED + 3)
    (tmp_path / "whole").mkdir()
    whole = make_data_files(tmp_path / "whole")
    for file in whole:
        assert len(load_training_rows(DataSection(name=str(file), validation_rows=0)).train) in (4, 8)
    cases = []
    for number in range(300):
        source = whole[number % len(whole)]
        case = tmp_path / f"{number}{''.join(source.suffixes)}"
        case.write_bytes(damage(source.read_bytes(), draw))
        cases.append(case)
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:  # a native crash ends that process
        found = []
        for case in cases:
            try:
                found.append(pool.submit(read_data, case).result())
            except BrokenProcessPool:
                pytest.fail(f"{case} crashes: {case.read_bytes()!r}")
    faults = list(filter(None, found))
    assert not faults, f"{len(faults)} of {len(found)}:\n" + "\n".join(faults[:20])


def damage_model(folder: Path, draw: random.Random) -> str:
    """Break one file of a model; say how."""
    file = draw.choice(sorted(folder.iterdir()))
    if file.suffix == ".json" and draw.random() < 0.7:
        content = json.loads(file.read_text())
        key = draw.choice(sorted(content))
        value = draw.choice([None, "x", -1, 0, 1.5, 3, [], {}, [1], {"a": None}, True])
        content[key] = value
        file.write_text(json.dumps(content))
        return f"{file.name}: {key}={value!r}"
    if draw.random() < 0.2:
        file.unlink()
        return f"{file.name} deleted"
    file.write_bytes(damage(file.read_bytes(), draw))
    return f"{file.name} damaged"


def test_model_folders(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 32}
    whole = tmp_path / "whole"
    LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, **sizes)).save_pretrained(whole)
    words = Tokenizer(WordLevel({"a": 0, "b": 1, "<s>": 2, "<unk>": 3}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<s>", unk_token="<unk>").save_pretrained(whole)

    def cases() -> Iterator[tuple[str, Callable[[], Any]]]:
        draw = random.Random(SEED + 4)
        for number in range(60):
            folder = tmp_path / str(number)
            shutil.copytree(whole, folder)
            how = damage_model(folder, draw)
            section = ModelSection(name=str(folder), dtype="float32")
            for load in (load_skeleton, load_model, load_tokenizer):
                yield f"{load.__name__}, {how}", lambda load=load, section=section: load(section)

    check(cases(), least=180)
