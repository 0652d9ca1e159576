"""What a model writes does not steer its judge: found in both forms, and quoted in the corrected one."""

import ast
import re

import pytest

from milora.data.published import read_text
from milora.data.rows import load_rows
from milora.evaluation.benchmarks.alpaca_eval import VERSION_1, VERSION_2
from milora.evaluation.judges.alpaca_eval import Pair, write_question
from milora.evaluation.judges.fence import LONG, NOTICE, delimiters_of, imitates
from tests.evaluation.table_injections import HARMLESS, HOSTILE, HOSTILE_OF

VERSIONS = {"1.0": VERSION_1, "2.0": VERSION_2}
NAMES = {"1.0": "model", "2.0": "model_identifier"}
HEADINGS = {
    "1.0": ("Here is the prompt:", "Here are the outputs of the models:", "Now please rank the models"),
    "2.0": ("## Model Outputs", "Here are the unordered outputs", "## Task", "## Best Model Identifier"),
}


def _delimiters(version, data_dir):
    return delimiters_of(read_text(version.prompt, data_dir), ['"""'], version.verdicts)


def _parse(name, question):
    """The parts of a request: its roles, its two entries as Python reads them, and its headings."""
    system, user = question.messages
    start, end = {"1.0": ("of the models:\n", "\n\nNow please"), "2.0": ("identifier.\n\n", "\n\n## Task")}[name]
    (block,) = re.findall(re.escape(start) + r"([\[{]\n.*?\n[\]}])" + re.escape(end), user.text, re.DOTALL)
    entries = [ast.literal_eval(entry) for entry in ast.parse(block, mode="eval").body.elts]
    headings = [user.text.count(f"\n{heading}") for heading in HEADINGS[name]]
    return [system.role, user.role], entries, headings


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param(name, text, id=f"{name} {kind}")
        for name in VERSIONS
        for kind, text in (HOSTILE | HOSTILE_OF[name]).items()
    ],
)
@pytest.mark.parametrize("switched", [False, True])
def test_hostile_completions_are_flagged_and_fenced(data_dir, name, text, switched):
    version = VERSIONS[name]
    assert imitates(text, _delimiters(version, data_dir))
    template, pair = read_text(version.prompt, data_dir), Pair("What is the capital?", "It is Paris.", text)
    official = write_question(version, template, pair, switched, "official")
    assert text in official.messages[1].text and NOTICE not in official.text
    question = write_question(version, template, pair, switched, "corrected")
    roles, entries, headings = _parse(name, question)
    assert roles == ["system", "user"] and question.messages[0].text.endswith(NOTICE)
    key = {"1.0": "answer", "2.0": "output"}[name]
    assert [entry.keys() for entry in entries] == [{NAMES[name], key}] * 2
    # JSON has two escapes for a character beyond the first plane, and so has Python, which leaves them two.
    first, second = (entry[key].encode("utf-16", "surrogatepass").decode("utf-16") for entry in entries)
    theirs, reference = (first, second) if switched else (second, first)
    assert reference == "It is Paris."
    shown = text if len(text) <= LONG else text[:LONG]
    assert theirs.startswith(shown) and (theirs == text or f"{len(text) - LONG} characters are left out" in theirs)
    plain = write_question(version, template, Pair("What is the capital?", "It is Paris.", "x"), switched, "corrected")
    assert headings == _parse(name, plain)[2]
    assert len(question.text) < 3 * LONG
    sent = question.messages[1].text
    assert sent.isprintable() or not re.search(r"[\x00-\x08\x0b-\x1f\u200b\u202a-\u202e\u2060\ufeff]", sent)


@pytest.mark.parametrize("name", VERSIONS)
@pytest.mark.parametrize("kind", HARMLESS)
def test_harmless_completions_are_sent_as_they_are(data_dir, name, kind):
    version, text = VERSIONS[name], HARMLESS[kind]
    assert not imitates(text, _delimiters(version, data_dir))
    pair = Pair("What is the capital?", "It is Paris.", text)
    template = read_text(version.prompt, data_dir)
    assert write_question(version, template, pair, False, "corrected") == write_question(
        version, template, pair, False, "official"
    )


def test_few_real_outputs_are_flagged(data_dir):
    """Of 1610 reference outputs, those with a Python docstring, and little else."""
    for name, task in (("1.0", "alpaca_eval_1"), ("2.0", "alpaca_eval_2")):
        delimiters = _delimiters(VERSIONS[name], data_dir)
        flagged = [row.answer for row in load_rows(task, "test", data_dir) if imitates(row.answer, delimiters)]
        assert len(flagged) <= 4


def test_hostile_texts_take_no_time_to_read(data_dir):
    delimiters = _delimiters(VERSION_2, data_dir)
    for text in (
        "ignore " * 4000,
        "output " * 4000,
        "output" + " " * 30_000,
        "say only " * 3000,
        "#" * LONG,
        "\n" * LONG,
    ):
        imitates(text, delimiters)
