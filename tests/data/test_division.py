"""Which rows are held out, and what a weight means."""

import json
from collections import Counter

import pytest

from milora import MiloraError
from milora.data.conversation import Conversation
from milora.data.training_rows import load_training_rows
from milora.run.recipe import load_recipe
from milora.run.sections import DataSection
from milora.training.prepare import locate


def write(path, questions):
    rows = [json.dumps({"question": question, "answer": f"{question}!"}) + "\n" for question in questions]
    path.write_text("".join(rows))
    return path


def read(**keys):
    rows = load_training_rows(DataSection(**keys))
    train, held_out = ([Conversation.from_row(row).question for row in table] for table in (rows.train, rows.held_out))
    return train, held_out, rows.copies


@pytest.fixture
def numbers(tmp_path):
    return write(tmp_path / "numbers.jsonl", map(str, range(40)))


def test_held_out_rows_are_drawn_by_the_seed_of_the_data(numbers, tmp_path):
    train, held_out, copies = read(name=str(numbers), validation_rows=8)
    assert sorted([*train, *held_out], key=int) == [str(number) for number in range(40)] and copies == 0
    assert train == sorted(train, key=int) and held_out == sorted(held_out, key=int)
    assert held_out not in ([str(n) for n in range(8)], [str(n) for n in range(32, 40)])
    assert read(name=str(numbers), validation_rows=8, seed=1)[1] != held_out
    turned = write(tmp_path / "turned.jsonl", map(str, reversed(range(40))))
    assert sorted(read(name=str(turned), validation_rows=8)[1]) == sorted(held_out)
    assert set(read(name=str(numbers), validation_rows=4)[1]) < set(held_out)


def test_a_text_is_not_on_both_sides(tmp_path):
    path = write(tmp_path / "twice.jsonl", [str(number) for number in range(20)] * 3)
    train, held_out, copies = read(name=str(path), validation_rows=5)
    assert len(set(held_out)) == len(held_out) == 5 and copies == 10
    assert not set(held_out) & set(train) and len(train) == 45


def test_too_few_different_rows(tmp_path):
    path = write(tmp_path / "same.jsonl", ["1"] * 20)
    with pytest.raises(MiloraError, match="has 20 rows with 1 different texts, and 5 of them would be held out"):
        read(name=str(path), validation_rows=5)


def test_sources_are_weighted_and_mixed(numbers, tmp_path):
    letters = write(tmp_path / "letters.jsonl", "abcdefghij")
    words = write(tmp_path / "words.jsonl", ["one", "two", "three", "four"])
    sources = [{"name": str(numbers), "weight": 0.5}, {"name": str(letters), "weight": 2.5}, {"name": str(words)}]
    train, held_out, _ = read(sources=sources, validation_rows=0)
    counts = Counter(train)
    assert sum(count for row, count in counts.items() if row.isdigit()) == 20 and max(counts["1"], counts["2"]) <= 1
    assert sum(counts[letter] for letter in "abcdefghij") == 25 and {counts[letter] for letter in "abcdefghij"} == {
        2,
        3,
    }
    assert [counts[word] for word in ("one", "two", "three", "four")] == [1, 1, 1, 1]
    assert len({row.isdigit() for row in train[:10]}) == 2, "the sources are not mixed"
    assert read(sources=sources, validation_rows=0)[0] == train
    assert read(sources=sources, validation_rows=0, rows=7)[0] == train[:7]
    train, held_out, _ = read(sources=sources, validation_rows=9)
    assert len(held_out) == 9 and not set(held_out) & set(train)
    assert read(sources=sources, validation_rows=9, seed=3)[1] != held_out


def test_the_sets_of_the_package_are_sources_too(numbers):
    sources = [{"name": "arithmetic", "weight": 0.01}, {"name": "chat", "weight": 1.0}, {"name": str(numbers)}]
    train, held_out, _ = read(sources=sources, validation_rows=10)
    assert 90 <= len(train) <= 100 and len(held_out) == 10


def test_a_source_of_which_nothing_is_left(numbers, tmp_path):
    two = write(tmp_path / "two.jsonl", ["x", "y"])
    with pytest.raises(MiloraError, match=r"two\.jsonl: its weight, or what is held out, leaves none of its 2 rows"):
        read(sources=[{"name": str(numbers)}, {"name": str(two), "weight": 0.2}], validation_rows=1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.sources=[{name: a.jsonl}]"], "name and sources are both set: set data.name=null"),
        (["data.name=null"], "name and sources are both missing"),
        (["data.name=null", "data.sources=[{name: a.jsonl, wait: 2}]"], "data.sources.0.wait is not a key"),
        (["data.name=null", "data.sources=[{name: a.jsonl, weight: 0}]"], "greater than 0"),
    ],
)
def test_recipes_that_are_refused(call, overrides, message):
    code, _, err = call("show", "quickstart", *overrides)
    assert code == 2 and message in err and "Traceback" not in err


def test_every_source_counts_by_its_content(numbers, tmp_path):
    letters = write(tmp_path / "letters.jsonl", "abc")

    def digest(*sources, weight=2):
        listed = ", ".join(f"{{name: '{name}', weight: {weight}}}" for name in sources)
        return locate(load_recipe("quickstart", ["data.name=null", f"data.sources=[{listed}]"]), tmp_path).path.name

    first = digest(numbers, letters)
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(letters.read_bytes())
    assert digest(numbers, moved) == first
    assert len({first, digest(letters, numbers), digest(numbers, letters, weight=3), digest(numbers)}) == 4
    letters.write_text(letters.read_text().replace("a!", "b!"))
    assert digest(numbers, letters) != first
