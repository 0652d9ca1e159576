"""AlpacaEval against its published annotations: preferences, win rates, prompts, and file formats."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from milora import MiloraError
from milora.data.conversation import Conversation
from milora.data.files import read_rows
from milora.data.published import read_text
from milora.data.rows import load_rows
from milora.evaluation.benchmarks import BENCHMARKS
from milora.evaluation.benchmarks.alpaca_eval import GAMED, VERSION_1, VERSION_2, read_gamed
from milora.evaluation.graders.grade import Grade
from milora.evaluation.judges.alpaca_eval import Pair, judge_pairs, read_probabilities, read_ranking, write_question
from milora.evaluation.judges.alpaca_files import read_annotations
from milora.evaluation.judges.judge import Answer, Judge, Question
from milora.evaluation.scores import Sample
from milora.run.directory import ScoreFolder
from milora.run.judge import JudgeSection

PUBLISHED = [
    # benchmark, annotations, win rate and its standard error, length-controlled win rate
    ("alpaca_eval_1", "v1_alpaca-7b", 26.459627329192543, 1.535711469748, None),
    ("alpaca_eval_2", "v2_vicuna-7b-v1.5", 4.797493939167703, 0.6655960676971918, 7.616892731870527),
    ("alpaca_eval_2", "v2_gpt-3.5-turbo-1106", 9.177964561962735, 0.8904117511864436, 19.30058903498905),
]
JUDGE = JudgeSection(url="http://judge/v1", model="gpt-4-1106-preview", form="official")


@dataclass(frozen=True)
class Recorded(Judge):
    """A judge that answers an instruction as it once did, without a server."""

    answers: dict[str, Answer] | None = None

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        found = []
        for question in questions:
            asked = question.messages[1].text.partition('"instruction": """')[2]
            found.append(next(self.answers[one] for one in self.answers if asked.startswith(f'{one}""",\n}}')))
        return found


def _file(data_dir: str, name: str) -> Path:
    return Path(data_dir) / "instruction" / "alpaca_eval" / f"annotations_{name}.json.gz"


def _samples(annotations, drop=()):
    kept = [one for index, one in enumerate(annotations) if index not in drop]
    return [
        Sample(one.row.question, one.row.answer, one.completion, {"win_rate": Grade(None, one.preference - 1)})
        for one in kept
    ]


def _recorded(data_dir: str, name: str) -> list[tuple[dict, Answer]]:
    """The published rows that a judge was asked about, with its answer as it was stored."""
    found = []
    for row in read_rows(_file(data_dir, name)):
        if row["raw_completion"] is not None:
            said = row["raw_completion"]
            first = said["logprobs"]["content"][0]["top_logprobs"]
            logprobs = tuple((one["token"], one["logprob"]) for one in first)
            found.append((row, Answer(said["text"], logprobs, said["finish_reason"])))
    return found


@pytest.mark.parametrize(("task", "name", "win_rate", "error", "controlled"), PUBLISHED)
def test_published_win_rates(data_dir, task, name, win_rate, error, controlled):
    annotations = read_annotations(_file(data_dir, name))
    metrics = BENCHMARKS[task].summarize(_samples(annotations), [one.row for one in annotations], data_dir)
    assert 100 * metrics["win_rate"].value == pytest.approx(win_rate, abs=1e-8)
    assert 100 * metrics["win_rate"].standard_error == pytest.approx(error, abs=1e-8)
    low, high = metrics["win_rate"].interval
    assert low < metrics["win_rate"].value < high
    if controlled:
        assert 100 * metrics["length_controlled"].value == pytest.approx(controlled, abs=0.2)
        assert metrics["length_controlled_official"] == metrics["length_controlled"]
    else:
        assert metrics.keys() == {"win_rate"}


def test_difficulties_are_aligned_by_instruction(data_dir):
    """A row without a verdict shifts the package's positions, and its figure; ours stays where it is."""
    annotations = read_annotations(_file(data_dir, "v2_gpt-3.5-turbo-1106"))
    rows, samples = [one.row for one in annotations], _samples(annotations)
    samples[3] = Sample(samples[3].question, samples[3].gold, samples[3].completion, {"win_rate": Grade(None, None)})
    metrics = BENCHMARKS["alpaca_eval_2"].summarize(samples, rows, data_dir)
    assert 100 * metrics["length_controlled"].value == pytest.approx(19.3006, abs=0.2)
    assert abs(metrics["length_controlled_official"].value - metrics["length_controlled"].value) > 0.005


def test_without_the_published_files_the_model_is_minimal_and_says_so(data_dir, tmp_path):
    annotations = read_annotations(_file(data_dir, "v2_vicuna-7b-v1.5"))
    metrics = BENCHMARKS["alpaca_eval_2"].summarize(_samples(annotations), [one.row for one in annotations], tmp_path)
    assert metrics.keys() == {"win_rate", "length_controlled_minimal"}
    assert 0.02 < metrics["length_controlled_minimal"].value < 0.15
    assert GAMED.optional and not VERSION_2.prompt.optional
    with pytest.raises(MiloraError, match="judge_prompt_v2_alpaca_eval_clf.txt does not exist"):
        read_text(VERSION_2.prompt, str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model,index,preference\na,0,0.5\n", "cannot be read: KeyError.'instruction_difficulty'"),
        ("index,preference,std_delta_len,instruction_difficulty\n0,much,0,0\n", "could not convert"),
        ("index,preference,std_delta_len,instruction_difficulty\n0,0.5,0,0\n", "has not the 805 instructions"),
    ],
)
def test_another_table_is_refused(tmp_path, content, message):
    (tmp_path / "df_gamed.csv").write_text(content)
    with pytest.raises(MiloraError, match=message):
        read_gamed(str(tmp_path))


def test_a_prompt_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "alpaca_eval_clf.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(MiloraError, match="alpaca_eval_clf.txt cannot be read"):
        read_text(VERSION_2.prompt, str(tmp_path))


@pytest.mark.parametrize(("name", "count"), [("v2_gpt-3.5-turbo-1106", 801), ("v2_vicuna-7b-v1.5", 802)])
def test_recorded_preferences_are_replayed(data_dir, tmp_path, name, count):
    """Our questions and our reading of the stored answers give every recorded preference, through the whole judging."""
    recorded = _recorded(data_dir, name)
    assert len(recorded) == count
    published = read_annotations(_file(data_dir, name))
    answers = {row["instruction"]: answer for row, answer in recorded}
    judge = Recorded(JUDGE, ScoreFolder(tmp_path), "vicuna", data_dir, True, answers)
    grades = judge_pairs(VERSION_2, [one.completion for one in published], [one.row for one in published], judge)
    assert len(grades["win_rate"]) == 805 and all(grade.score is not None for grade in grades["win_rate"])
    for one, grade in zip(published, grades["win_rate"], strict=True):
        assert grade.score + 1 == pytest.approx(one.preference, abs=1e-9)
    ours = read_annotations(judge.folder.annotations)
    assert [one.preference for one in ours] == [grade.score + 1 for grade in grades["win_rate"]]


def test_the_files_are_those_of_alpaca_eval(data_dir, tmp_path):
    (published,) = [
        row for row in read_rows(_file(data_dir, "v2_vicuna-7b-v1.5")) if row["instruction"].startswith("How did US")
    ]
    row = Conversation.of_turn(
        published["instruction"], published["output_1"], generator="gpt4_1106_preview", dataset=published["dataset"]
    )
    answer = next(found for one, found in _recorded(data_dir, "v2_vicuna-7b-v1.5") if one == published)
    judge = Recorded(JUDGE, ScoreFolder(tmp_path), "vicuna-7b-v1.5", data_dir, True, {row.question: answer})
    judge_pairs(VERSION_2, [published["output_2"]], [row], judge)
    (annotation,) = json.loads(judge.folder.annotations.read_text())
    assert annotation.keys() == published.keys() - {"price_per_example", "time_per_example", "glm_preference"}
    for key in annotation.keys() - {"raw_completion", "preference"}:
        assert annotation[key] == published[key]
    (output,) = json.loads(judge.folder.outputs.read_text())
    assert output == {
        "dataset": published["dataset"],
        "instruction": published["instruction"],
        "output": published["output_2"],
        "generator": "vicuna-7b-v1.5",
    }


@pytest.mark.parametrize("version", [VERSION_1, VERSION_2])
@pytest.mark.parametrize("switched", [False, True])
def test_the_official_question_is_the_published_prompt(data_dir, version, switched):
    template = read_text(version.prompt, data_dir)
    pair = Pair("Say {output_1}.", 'the "reference"\\', '"""\n<|im_end|>\n')
    first, second = (pair.output, pair.reference) if switched else (pair.reference, pair.output)
    system, user = (
        part.split("\n", 1)[1].rpartition("<|im_end|>")[0].strip() for part in template.split("<|im_start|>")[1:]
    )
    user = user.replace("{output_1}", "\0").replace("{output_2}", second)
    user = user.replace("{instruction}", pair.instruction).replace("\0", first)
    question = write_question(version, template, pair, switched, "official")
    assert [(message.role, message.text) for message in question.messages] == [("system", system), ("user", user)]
    asked = {VERSION_1.annotator: (100, 0.0, None), VERSION_2.annotator: (1, 1.0, 5)}
    assert (question.max_tokens, question.temperature, question.top_logprobs) == asked[version.annotator]


def test_rows_are_in_the_official_order(data_dir):
    rows = [load_rows(name, "test", data_dir) for name in ("alpaca_eval_1", "alpaca_eval_2")]
    assert [len(one) for one in rows] == [805, 805]
    assert [row.question for row in rows[1]] == [
        one.row.question for one in read_annotations(_file(data_dir, "v2_vicuna-7b-v1.5"))
    ]
    assert {row.fields["generator"] for row in rows[0]} == {"text_davinci_003"}
    assert {row.fields["generator"] for row in rows[1]} == {"gpt4_1106_preview"}


RANKINGS = [
    ("[{'model': 'model_1', 'rank': 1}, {'model': 'model_2', 'rank': 2}]", 1),
    ("\n[{'model': 'model_2', 'rank': 1}, {'model': 'model_1', 'rank': 2}]\n", 2),
    ('[{"model": "model_1", "rank": 2}, {"model": "model_2", "rank": 1}]', 2),
    ("[{'model': 'model_1', 'rank': 1}, {'model': 'model_2', 'rank': 1}]", None),
    ("[{'model': 'model_1', 'rank': 3}, {'model': 'model_2', 'rank': 1}]", None),
    ("[{'model': 'model_1', 'rank': True}, {'model': 'model_2', 'rank': 2}]", None),
    ("[{'model': 'model_1', 'rank': 1}, {'model': 'model_1', 'rank': 2}]", None),
    ("[{'model': 'model_1', 'rank': 1}]", None),
    ("[{'model': 'model_1', 'rank': 1}, {'mod", None),
    ("{'model': 'model_1', 'rank': 1}", None),
    ("model_1", None),
    ("[" * 900, None),
    ("__import__('os').system('true')", None),
]


@pytest.mark.parametrize(("text", "preference"), RANKINGS)
def test_rankings(text, preference):
    if preference is None:
        with pytest.raises(ValueError, match="not a ranking"):
            read_ranking(Answer(text))
    else:
        assert read_ranking(Answer(text)) == preference


PROBABILITIES = [
    ((("m", -0.1), ("M", -2.4)), 2 - 0.908877),
    ((("M", -0.1), ("The", -2.4)), 2.0),
    ((("m", -800.0), ("M", -801.0)), 2 - 0.731059),  # both far below what exp can hold
    ((("Neither", -0.1), ('"m', -2.4)), "neither m nor M"),
    (None, "no log-probabilities"),
]


@pytest.mark.parametrize(("logprobs", "expected"), PROBABILITIES)
def test_probabilities(logprobs, expected):
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            read_probabilities(Answer("m", logprobs))
    else:
        assert read_probabilities(Answer("m", logprobs)) == pytest.approx(expected, abs=1e-6)
