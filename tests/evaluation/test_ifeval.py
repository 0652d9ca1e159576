"""IFEval against what the official code said of two models' responses, instruction by instruction."""

import json
from pathlib import Path

import pytest

from milora import MiloraError
from milora.data.files import read_rows
from milora.data.instruction import read_ifeval
from milora.data.rows import load_rows
from milora.evaluation.benchmarks import BENCHMARKS
from milora.evaluation.graders.grade import Grade
from milora.evaluation.graders.instructions import check_instructions_can_be_read
from milora.evaluation.intervals import wilson
from milora.evaluation.scores import Sample

IFEVAL = BENCHMARKS["ifeval"]
ACCURACIES = ("prompt_strict", "instruction_strict", "prompt_loose", "instruction_loose")
TWO_VERSIONS = "2785"  # "at least 3 placeholders" in the published prompts, "at least one" in those of the responses
# The published check counts a random letter where a prompt asks for a sign: it says both yes and no of one response.
SIGNS = {"1122": (1, "#", 4), "1129": (0, "!", 6)}  # which instruction, and what it asks for


def _why_not():
    """Why the checks cannot be run here."""
    try:
        return check_instructions_can_be_read() or ""
    except MiloraError as error:
        return str(error)


needs_sentences = pytest.mark.skipif(bool(_why_not()), reason=_why_not())
pytestmark = needs_sentences


def _row(prompt, *instructions):
    """A row in the published form: each instruction is its name and its arguments."""
    return read_ifeval(
        {
            "key": 1,
            "prompt": prompt,
            "instruction_id_list": [name for name, _ in instructions],
            "kwargs": [arguments for _, arguments in instructions],
        }
    )


def _grade(rows, completions):
    grades = IFEVAL.grade(completions, rows)
    return [
        Sample(row.question, "", text, {name: found[index] for name, found in grades.items()})
        for index, (row, text) in enumerate(zip(rows, completions, strict=True))
    ]


def _percent(samples, rows):
    metrics = IFEVAL.summarize(samples, rows, None)
    return [round(100 * metrics[name].value, 2) for name in ACCURACIES]


def _replay(data_dir, responses, verdicts):
    """The rows, the samples, and the official verdicts by key."""
    folder = Path(data_dir) / "instruction" / "ifeval"
    answers = {row["prompt"]: row["response"] for row in read_rows(folder / responses)}
    official = {str(row["key"]): row for row in read_rows(folder / verdicts)}
    rows = [row for row in load_rows("ifeval", "test", data_dir) if row.fields["key"] in official]
    other = next((prompt for prompt in answers if prompt not in {row.question for row in rows}), None)
    for index, row in enumerate(rows):
        if row.fields["key"] == TWO_VERSIONS:
            row.fields["instructions"] = row.fields["instructions"].replace(
                '"num_placeholders": 3', '"num_placeholders": 1'
            )
            rows[index] = type(row).of_turn(other, "", **row.fields)
    return rows, _grade(rows, [answers[row.question] for row in rows]), official


@pytest.mark.slow
@pytest.mark.parametrize(
    ("responses", "verdicts", "count", "accuracies", "unlike"),
    [
        ("responses_qwen2.5-1.5b-instruct.jsonl.gz", "verdicts_qwen2.5-1.5b-instruct.jsonl", 541,
         [37.15, 49.52, 42.14, 53.84], {"1122 strict", "1122 loose", "1129 strict", "1129 loose"}),
        ("input_response_data_gpt4_20231107_145030.jsonl.gz", "verdicts_gpt4.jsonl", 540,
         [77.22, 83.77, 79.63, 85.58], {"1122 loose"}),
    ],
)  # fmt: skip
def test_the_official_verdicts_on_two_models(data_dir, responses, verdicts, count, accuracies, unlike):
    rows, samples, official = _replay(data_dir, responses, verdicts)
    assert len(rows) == count
    found = set()
    for row, sample in zip(rows, samples, strict=True):
        key = row.fields["key"]
        for form in ("strict", "loose"):
            grade = sample.grades[f"prompt_{form}"]
            assert grade.score == all(grade.parts)
            if list(grade.parts) == official[key][form]:
                continue
            found.add(f"{key} {form}")
            place, sign, least = SIGNS[key]
            assert grade.parts[place] == (sample.completion.count(sign) >= least)
            assert grade.parts[1 - place] == official[key][form][1 - place]
            parts = tuple(map(float, official[key][form]))
            sample.grades[f"prompt_{form}"] = Grade(None, float(all(parts)), parts=parts)
    assert found == unlike
    assert _percent(samples, rows) == accuracies


def test_instructions_one_by_one():
    few_words = ("length_constraints:number_words", {"relation": "less than", "num_words": 4})
    signs = ("keywords:letter_frequency", {"letter": "#", "let_frequency": 4, "let_relation": "at least"})
    sentences = ("length_constraints:number_sentences", {"relation": "at least", "num_sentences": 4})
    rows = [
        _row("Say it.", ("punctuation:no_comma", {}), few_words),
        _row("Say it.", ("punctuation:no_comma", {})),
        _row("Four `#`.", signs),
        _row("Auf Deutsch.", ("language:response_language", {"language": "de"})),
        _row("Four sentences, and a full stop of a title ends none.", sentences),
    ]
    texts = [
        "one two, three four",
        "Sure, here it is:\nYes",
        "#a #b #c #d",
        "Das ist ein kurzer Satz.",
        "One. Dr. Who. Two.",
    ]
    samples = _grade(rows, texts)
    assert [sample.grades["prompt_strict"].parts for sample in samples] == [(0, 0), (0,), (1,), (1,), (0,)]
    assert [sample.grades["prompt_loose"].parts for sample in samples] == [(0, 0), (1,), (1,), (1,), (0,)]
    assert samples[0].grades["prompt_strict"].answer == (
        "not followed: punctuation:no_comma, length_constraints:number_words"
    )
    assert _percent(samples, rows) == [40.0, 33.33, 60.0, 50.0]
    assert _grade(rows, [""] * 5)[3].grades["prompt_loose"].parts == (0,)


def test_degenerate_completions_are_graded(caplog):
    rows = [
        _row("As JSON.", ("detectable_format:json_format", {})),
        _row("In Finnish.", ("language:response_language", {"language": "fi"})),
    ]
    grades = [sample.grades["prompt_loose"] for sample in _grade(rows, ["[" * 20000, "1 2 3"])]
    assert [grade.score for grade in grades] == [0, 1]  # as published: a text without a language has any
    assert not caplog.records


def test_two_runs_agree():
    """langdetect guesses with random numbers, and few words give it little to go by."""
    row = _row("In Finnish.", ("language:response_language", {"language": "fi"}))
    texts = ["no on se", "la la la", "hotel taxi", "ok radio", "se on ok"]
    first, *others = [[sample.grades for sample in _grade([row] * 5, texts)] for _ in range(4)]
    assert all(other == first for other in others)


def test_the_interval_of_instructions_knows_that_those_of_a_prompt_are_not_independent():
    row = _row("Say it.", ("punctuation:no_comma", {}), ("change_case:english_lowercase", {}))
    samples = _grade([row] * 4, ["yes it is so", "yes it is so", "Yes, I am", "Yes, I am"])
    metric = IFEVAL.summarize(samples, [row] * 4, None)["instruction_strict"]
    assert metric.value == 0.5
    # Four prompts, all or nothing: s² = 4/3 · 4 · 1² / 8², as of 0.5 · 0.5 / s² = 3 independent verdicts.
    assert metric.standard_error == pytest.approx((1 / 12) ** 0.5)
    assert metric.interval == pytest.approx(wilson(0.5, 3))
    perfect = IFEVAL.summarize(samples[:2], [row] * 2, None)["instruction_strict"]
    assert perfect.value == 1 and perfect.interval[0] < 0.5  # two prompts say little


def test_the_hubs_copy_reads_like_the_published_file():
    """It lists all arguments of all instructions, null where they are not set."""
    published = _row("Say it.", ("keywords:existence", {"keywords": ["a"]}), ("punctuation:no_comma", {}))
    existence = ("keywords:existence", {"keywords": ["a"], "num_words": None})
    hub = _row("Say it.", existence, ("punctuation:no_comma", {"keywords": None}))
    assert hub == published
    assert json.loads(hub.fields["instructions"])[1] == {"id": "punctuation:no_comma", "arguments": {}}


def test_without_the_sentence_tokenizer_nothing_is_loaded(monkeypatch):
    monkeypatch.setattr("nltk.data.path", [])
    with pytest.raises(MiloraError, match="punkt_tab") as caught:
        IFEVAL.load(None)
    assert "NLTK_DATA" in caught.value.hint
