"""Benchmarks about pictures: LLaVA-1.5's questions to the byte, and its published scores from its stored answers."""

import csv
import io
import json
import random
import re
import zipfile
from collections import Counter
from pathlib import Path
from statistics import fmean, stdev
from xml.etree import ElementTree

import pytest

from milora import MiloraError
from milora.data.picture_rows import LETTER, POPE_SPLITS, SHORT, ask
from milora.data.picture_sets import PICTURE_SETS, identify_pictures
from milora.data.rows import load_rows
from milora.evaluation.benchmarks import BENCHMARKS
from milora.evaluation.graders.letters import read_mmbench, read_scienceqa
from milora.evaluation.graders.vqa import match, measure_agreement, normalize, score_textvqa, score_vqa
from milora.evaluation.scores import Metric, Sample, Scores, Settings, average, measure_ratio
from milora.evaluation.spreadsheet import write_spreadsheet
from milora.run.environment import describe_environment
from tests.data.pictures_folder import make_pictures_folder, read_json, read_lines, stored_prompts


@pytest.fixture(scope="module")
def vision(data_dir):
    folder = Path(data_dir) / "vision"
    if not folder.is_dir():
        pytest.skip("MILORA_TEST_DATA has no folder vision")
    return folder


@pytest.fixture(scope="module")
def folder(vision, tmp_path_factory):
    return str(make_pictures_folder(vision, tmp_path_factory.mktemp("vision") / "data"))


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def grade(name, folder, completions, limit=None):
    """The benchmark's rows, samples and metrics, in percent, for completions in the rows' order."""
    benchmark = BENCHMARKS[name]
    rows = benchmark.load(folder, limit)
    grades = benchmark.grade(completions, rows)
    samples = [
        Sample(row.question, row.answer, text, {grader: found[index] for grader, found in grades.items()}, row.images)
        for index, (row, text) in enumerate(zip(rows, completions, strict=True))
    ]
    metrics = benchmark.summarize(samples, rows, folder)
    return rows, samples, {name: round(100 * metric.value, 2) for name, metric in metrics.items()}


@pytest.mark.parametrize("name", ["gqa", "vizwiz_test", "textvqa", "pope", "scienceqa", "mmbench"])
def test_questions_are_llavas_to_the_byte(name, vision, folder):
    wanted = stored_prompts(vision)[name]
    assert [row.question for row in BENCHMARKS[name].load(folder, len(wanted))] == wanted


def test_pope(vision, folder):
    asked = {row["question_id"]: row for row in read_lines(vision / "pope/llava_pope_test.jsonl.gz")}
    answers = read_lines(vision / "pope/answers_llava-v1.5-13b.jsonl.gz")
    completions = [
        row["text"] for split in POPE_SPLITS for row in answers if asked[row["question_id"]]["category"] == split
    ]
    _, _, metrics = grade("pope", folder, completions)
    assert [metrics[f"accuracy_{split}"] for split in POPE_SPLITS] == [88.01, 87.43, 85.50]
    assert [metrics[f"f1_{split}"] for split in POPE_SPLITS] == [87.14, 86.25, 84.46]
    assert metrics["f1"] == 85.95


def test_textvqa(vision, folder):
    completions = [row["text"] for row in read_lines(vision / "textvqa/answers_llava-v1.5-13b_first1000.jsonl")]
    rows, _, metrics = grade("textvqa", folder, completions)
    assert metrics["accuracy"] == 62.71
    exact = [
        measure_agreement(text, json.loads(row.fields["answers"])) for row, text in zip(rows, completions, strict=True)
    ]
    assert 100 * fmean(exact) < 60  # without the normalization
    assert max(Counter(row.images for row in rows).values()) > 1  # a picture, whose id is question_id, has several


def test_mmbench(vision, folder):
    with (vision / "mmbench/upload_llava-v1.5-13b_part.tsv").open(newline="") as file:
        stored = list(csv.DictReader(file, delimiter="\t"))
    predictions = {row["index"]: row["prediction"] for row in stored}
    rows = BENCHMARKS["mmbench"].load(folder)
    _, _, metrics = grade("mmbench", folder, [predictions[row.fields["index"]] for row in rows])
    assert metrics == {"circular": 64.97, "single": 72.79}


def test_scienceqa(vision, folder):
    completions = [row["text"] for row in read_lines(vision / "scienceqa/answers_llava-v1.5-13b_first300.jsonl")]
    rows, samples, metrics = grade("scienceqa", folder, completions, 300)
    assert metrics == {"picture": 76.92, "all": 76.33}
    assert sum(sample.grades["picture"].score is not None for sample in samples) == 143
    problems = read_json(vision / "scienceqa/problems_part.json")
    known = [(row.answer, problems[key]["answer"]) for row in rows if (key := row.fields["key"]) in problems]
    assert len(known) > 20 and all(letter == "ABCDE"[index] for letter, index in known)


@pytest.mark.parametrize(
    ("answer", "given", "score"),
    [
        # Worked by hand: n of ten people, one left out each time, and three make an answer right.
        ("red", ["red"] * 1 + ["blue"] * 9, 0.3),  # (1·0 + 9·1/3)/10
        ("red", ["red"] * 2 + ["blue"] * 8, 0.6),  # (2·1/3 + 8·2/3)/10
        ("red", ["red"] * 3 + ["blue"] * 7, 0.9),  # (3·2/3 + 7·1)/10
        ("red", ["red"] * 4 + ["blue"] * 6, 1.0),
        ("green", ["red"] * 4 + ["blue"] * 6, 0.0),
        ("Two dogs.", ["2 dogs"] * 2 + ["two, dogs"] * 1 + ["a dog"] * 7, 0.9),
        ("The U.S.", ["us"] * 5 + ["USA"] * 5, 1.0),
        ("isnt", ["isn't"] * 5 + ["is not"] * 5, 1.0),
        ("3.50", ["3.50"] * 5 + ["350"] * 5, 1.0),
        ("2,000", ["2000"] * 5 + ["2 000"] * 5, 1.0),
        ("half-and-half", ["half and half"] * 2 + ["cream"] * 8, 0.6),
        # Nothing is normalized once all agree, but what LLaVA does to an answer before it uploads it.
        ("Yes", ["yes"] * 10, 1.0),
        ("3pm", ["3pm."] * 10, 0.0),
        ("3pm", ["3pm."] * 9 + ["3 pm"], 1.0),
    ],
)
def test_vqa_accuracy_by_hand(answer, given, score):
    assert score_vqa(answer, given).score == pytest.approx(score)


def test_textvqa_normalizes_even_if_all_agree():
    assert score_textvqa("3pm", ["3pm."] * 10).score == 1.0
    assert score_textvqa("McDonald's", ["mcdonalds"] * 10).score == 0.0  # M4C makes it "mcdonald 's"
    assert score_textvqa(" ", ["red"] * 10).answer is None


def test_vqa_accuracy_of_people(vision):
    """Each of the ten is scored against the nine others by min(1, n/3); and every answer as the definition says."""
    by_type: dict[str, list[float]] = {}
    for row in read_json(vision / "vqav2/annotations_2962.json.gz")["annotations"]:
        given = [normalize(answer["answer"]) for answer in row["answers"]]
        others = [given[:place] + given[place + 1 :] for place in range(10)]
        for answer in set(given):
            by_definition = fmean(min(1, nine.count(answer) / 3) for nine in others)
            assert measure_agreement(answer, given) == pytest.approx(by_definition)
        people = [match(nine.count(answer)) for answer, nine in zip(given, others, strict=True)]
        by_type.setdefault(row["answer_type"], []).append(fmean(people))
    found = {kind: round(100 * fmean(scores), 2) for kind, scores in by_type.items()}
    assert found == {"yes/no": 94.91, "number": 79.10, "other": 66.39}


def test_vqav2_of_the_most_common_answers(folder):
    rows, _, metrics = grade("vqav2", folder, [row.answer for row in BENCHMARKS["vqav2"].load(folder)])
    assert metrics == {"accuracy": 96.56, "number": 96.3, "other": 93.21, "yes_no": 100}
    assert rows[0].images[0].endswith("vqav2/val2014/COCO_val2014_000000540769.jpg")


def test_vizwiz_counts_people_and_unanswerable_is_an_answer(folder):
    """The answers have no ids: ten people who say the same are ten, and not one."""
    rows, samples, metrics = grade("vizwiz", folder, ["Unanswerable."] * 500)
    agreed = [
        sample.grades["accuracy"].score
        for sample, row in zip(samples, rows, strict=True)
        if set(json.loads(row.fields["answers"])) == {"unanswerable"}
    ]
    assert agreed and set(agreed) == {1.0}
    assert metrics["unanswerable"] == 100 and metrics["other"] < 60


def test_vizwiz_upload_is_llavas(vision, folder):
    completions = [row["text"] for row in read_lines(vision / "vizwiz/answers_llava-v1.5-13b_first500.jsonl")]
    rows, samples, metrics = grade("vizwiz_test", folder, completions)
    uploaded = json.loads(BENCHMARKS["vizwiz_test"].upload(samples, rows, folder))
    assert uploaded == read_json(vision / "vizwiz/upload_llava-v1.5-13b_first500.json")
    assert metrics == {"answered": 100}


def test_vqav2_upload_has_every_question_of_test2015(tmp_path):
    for split, keys in (("test-dev2015", [3, 1]), ("test2015", [1, 2, 3])):
        file = tmp_path / "vqav2" / f"v2_OpenEnded_mscoco_{split}_questions.json"
        file.parent.mkdir(exist_ok=True)
        questions = [{"image_id": 25, "question": "Is it?", "question_id": key} for key in keys]
        file.write_text(json.dumps({"questions": questions}))
    rows, samples, _ = grade("vqav2_test", str(tmp_path), ["Three.", "Yes"])
    assert rows[0].images == (str(tmp_path / "vqav2/test2015/COCO_test2015_000000000025.jpg"),)
    uploaded = BENCHMARKS["vqav2_test"].upload(samples, rows, str(tmp_path))
    assert [(row["question_id"], row["answer"]) for row in json.loads(uploaded)] == [(1, "yes"), (2, ""), (3, "3")]


def test_mmbench_upload_is_llavas_table(vision, folder):
    with (vision / "mmbench/upload_llava-v1.5-13b_part.tsv").open(newline="") as file:
        stored = {row["index"]: row for row in csv.DictReader(file, delimiter="\t")}
    completions = [stored[row.fields["index"]]["prediction"] for row in BENCHMARKS["mmbench"].load(folder)]
    rows, samples, _ = grade("mmbench", folder, completions)
    header, *lines = read_spreadsheet(BENCHMARKS["mmbench"].upload(samples, rows, folder))
    assert {line[0]: dict(zip(header, line, strict=True)) for line in lines} == stored


def read_spreadsheet(content):
    """The cells of the first sheet."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        sheet = ElementTree.fromstring(archive.read("xl/worksheets/sheet1.xml"))
    return [["".join(cell.itertext()) for cell in row] for row in sheet[0]]


def test_a_spreadsheet_keeps_every_character_that_xml_has():
    text = ' <a> & "b"\n\tç 猫 \U0001f600 '
    assert read_spreadsheet(write_spreadsheet([[text, 7, ""], ["a\x00b\ud800", -1, "c"]])) == [
        [text, "7", ""],
        ["ab", "-1", "c"],
    ]


def test_mmbench_leaves_out_a_question_whose_rotations_are_cut(folder):
    rows = BENCHMARKS["mmbench"].load(folder, 3)
    assert [row.fields["index"] for row in rows] == ["7", "1000007", "2000007"]
    _, samples, metrics = grade("mmbench", folder, [row.answer for row in BENCHMARKS["mmbench"].load(folder, 5)], 5)
    assert [sample.grades["circular"].score for sample in samples] == [1.0, None, None, None, None]
    assert metrics == {"circular": 100, "single": 100}
    with pytest.raises(MiloraError, match=r"none of 1 samples could be judged \(rotations are missing\)"):
        grade("mmbench", folder, ["A"], 1)


def test_mmbench_asks_no_empty_option(folder):
    counts = Counter()
    for row in BENCHMARKS["mmbench"].load(folder):
        options = json.loads(row.fields["options"])
        assert row.question.endswith(f"\n{list(options)[-1]}. {list(options.values())[-1]}{LETTER}")
        assert row.answer in options
        counts[len(options), int(row.fields["rotations"])] += 1
    assert set(counts) == {(2, 2), (3, 3), (4, 3), (4, 4)}  # "All of these" stays the last option


@pytest.mark.parametrize(
    ("completion", "shown", "is_yes"),
    [
        ("Yes", "yes", True),
        ("No", "no", False),
        ("No, there is a cat.", "no", False),
        ("There is no dog in the image. Yes", "no", False),
        ("Yes. There is no dog", "yes", True),
        ("Yes, not one but two.", "no", False),  # as POPE reads it
        (" No\n", "no", False),
        ("Nothing", None, True),
        ("I cannot see it", None, True),
        ("", None, True),
    ],
)
def test_pope_reads_a_no_among_the_words_of_the_first_sentence(completion, shown, is_yes):
    rows = [ask("Is there a dog in the image?", gold, None, split="random") for gold in ("yes", "no")]
    grades = BENCHMARKS["pope"].grade([completion] * 2, rows)["accuracy"]
    assert [(grade.answer, grade.score) for grade in grades] == [(shown, float(is_yes)), (shown, float(not is_yes))]


def test_popes_later_random_split_has_other_questions(vision, folder):
    later = read_lines(vision / "pope_coco_random.json")
    rows = [row for row in load_rows("pope", "test", folder) if row.fields["split"] == "random"]
    assert (len(later), len(rows)) == (3000, 2910)
    ours = {(Path(row.images[0]).name, row.question.removesuffix(SHORT)) for row in rows}
    assert len({(row["image"], row["text"]) for row in later} - ours) == 234


def test_pope_of_a_model_that_never_says_yes():
    rows = [ask("Is there a dog?", gold, None, split="popular") for gold in ("yes", "no", "no")]
    grades = BENCHMARKS["pope"].grade(["No"] * 3, rows)["accuracy"]
    samples = [Sample("", row.answer, "No", {"accuracy": one}) for row, one in zip(rows, grades, strict=True)]
    metrics = {name: metric.value for name, metric in BENCHMARKS["pope"].summarize(samples, rows, None).items()}
    assert metrics == {
        "f1": 0,
        "accuracy": pytest.approx(2 / 3),
        "accuracy_popular": pytest.approx(2 / 3),
        "f1_popular": 0,
        "recall_popular": 0,
        "yes_popular": 0,
    }
    with pytest.raises(MiloraError, match="no answer and no gold of 2 questions is yes"):
        BENCHMARKS["pope"].summarize(samples[1:], rows[1:], None)


def test_the_standard_error_of_f1_is_that_of_samples_drawn_anew(vision, folder):
    """The linear approximation against a bootstrap, on 300 questions."""
    generator = random.Random(0)
    pairs = [generator.choice([(2.0, 2.0)] * 5 + [(0.0, 1.0)] + [(0.0, 0.0)] * 4) for _ in range(300)]
    drawn = [generator.choices(pairs, k=300) for _ in range(1000)]
    ratios = [sum(x for x, _ in sample) / sum(n for _, n in sample) for sample in drawn]
    found = measure_ratio(pairs)
    assert found.standard_error == pytest.approx(stdev(ratios), rel=0.1)
    low, high = found.interval
    assert low < found.value < high


@pytest.mark.parametrize(
    ("completion", "letter"),
    [
        ("B", "B"),
        (" B\n", "B"),
        ("B. a spotted coat", "B"),
        ("B.", None),
        ("The answer is C.", "C"),
        ("The answer is C", None),
        ("The answer is C. The answer is D.", None),
        ("Because", None),
        ("b", None),
        ("", None),
    ],
)
def test_the_letter_of_scienceqa(completion, letter):
    assert read_scienceqa(completion) == letter


@pytest.mark.parametrize(
    ("completion", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("B. yes", "B"),
        ("The answer is B.", "B"),
        ("A dog on a sofa", None),
        ("A. no", "A"),
        ("A or B", None),
        ("I would say yes", "B"),
        ("yes and no", None),
        ("C", None),
        ("", None),
    ],
)
def test_the_letter_of_mmbench(completion, letter):
    assert read_mmbench(completion, {"A": "no", "B": "yes"}) == letter


def test_gqa_is_exact_match_without_case_and_last_period(folder):
    rows = BENCHMARKS["gqa"].load(folder, 6)
    grades = BENCHMARKS["gqa"].grade(["yes", "Yes.", " YES\n", "yes!", "yes, it is", ""], rows)["accuracy"]
    assert [grade.score for grade in grades] == [1, 1, 1, 0, 0, 0] and grades[-1].answer is None


def test_the_pictures_of_table_4_are_averaged_by_headline():
    environment = describe_environment()
    parts = [
        Scores("a", "base", 2, "f1", {"f1": Metric(0.5, 0.1), "x": Metric(0, 0)}, Settings("m", "1"), environment),
        Scores("b", "base", 2, "acc", {"acc": Metric(0.7, 0.1)}, Settings("m", "1"), environment),
    ]
    found = average("vision", parts)
    assert (found.primary, list(found.metrics)) == ("average", ["average"])
    assert found.headline.value == pytest.approx(0.6)


def test_without_a_folder_or_a_file_or_with_another_form(tmp_path):
    with pytest.raises(
        MiloraError, match=r"pope is read from local files, pope/coco/coco_pope_random\.json, .*pictures"
    ):
        BENCHMARKS["pope"].load(None)
    with pytest.raises(MiloraError, match="val.json does not exist") as missing:
        BENCHMARKS["vizwiz"].load(str(tmp_path))
    assert "Annotations.zip" in missing.value.hint and "leave data_dir out" not in missing.value.hint
    (tmp_path / "vizwiz").mkdir()
    (tmp_path / "vizwiz/val.json").write_text('[{"image": "a.jpg"}]')
    with pytest.raises(MiloraError, match=r"rows of vizwiz in .*val.json have another form .* KeyError 'answers'"):
        BENCHMARKS["vizwiz"].load(str(tmp_path))
    table = "index\tquestion\thint\tA\tB\tC\tD\tanswer\timage\tsplit\n1\tq\t\ta\tb\t\t\tA\t???\tdev\n"
    (tmp_path / "mmbench_dev_20230712.tsv").write_text(table)
    with pytest.raises(MiloraError, match="row 1 has no picture in base64"):
        BENCHMARKS["mmbench"].load(str(tmp_path))


WRONG_FORMS = {
    "another object": {"data": [{"a": 1}]},
    "no object": [1, "text", None],
    "none": [],
    "none inside": {"questions": [], "annotations": []},
    "texts for lists": {"questions": "abc", "annotations": "abc"},
    "numbers for texts": [{"image": 1, "question": 2, "answers": 3, "text": 4, "label": 5, "conversations": 6}],
    "another label": [{"image": "a.jpg", "text": "q", "label": "maybe"}],
    "texts for numbers": {"questions": [{"question_id": "x", "image_id": "y", "question": "z"}], "annotations": []},
}


@pytest.mark.parametrize("form", WRONG_FORMS)
def test_any_other_form_is_an_error_with_the_file(tmp_path, form):
    for name, picture_set in PICTURE_SETS.items():
        for published in picture_set.files:
            path = tmp_path / published.files[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(WRONG_FORMS[form])
            path.write_text("index\tquestion\n1\tq\n" if path.suffix == ".tsv" else text)
        with pytest.raises(MiloraError, match=re.escape(str(tmp_path))):
            BENCHMARKS[name].load(str(tmp_path))


@pytest.mark.parametrize("answers", [[], [{"answer": 1}], [{"answer": None}], ["red"], "red"])
def test_peoples_answers_are_texts(tmp_path, answers):
    (tmp_path / "vizwiz").mkdir()
    row = {"image": "a.jpg", "question": "Which?", "answers": answers, "answer_type": "other"}
    (tmp_path / "vizwiz/val.json").write_text(json.dumps([row]))
    with pytest.raises(MiloraError, match=r"val\.json have another form"):
        BENCHMARKS["vizwiz"].load(str(tmp_path))


def test_a_changed_picture_is_another_picture(tmp_path):
    pictures = tmp_path / "vizwiz/val"
    pictures.mkdir(parents=True)
    (pictures / "a.jpg").write_bytes(b"one")
    first = identify_pictures("vizwiz", str(tmp_path))
    (pictures / "a.jpg").write_bytes(b"another")
    assert identify_pictures("vizwiz", str(tmp_path)) != first
