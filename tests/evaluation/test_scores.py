"""The record of scores: what is written is JSON, and what is read back is what was written."""

import json
import math

from milora.evaluation.graders.grade import Grade
from milora.evaluation.scores import Metric, Sample, Scores, Settings, average, format_table, read_samples, write_scores
from milora.method.files import format_json
from milora.run.directory import ScoreFolder
from milora.run.environment import describe_environment


def _refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


def _scores(**options):
    options = {"metrics": {"acc": Metric(0.5, 0.1)}, "truncated": 0, "unfit": 0} | options
    return Scores("tiny", "base", 2, "acc", settings=Settings("m", "1"), environment=describe_environment(), **options)


def test_numbers_that_json_does_not_have(tmp_path):
    scores = _scores(metrics={"acc": Metric(math.inf, -math.inf)})
    grades = [{"acc": Grade(None, score)} for score in (math.nan, math.inf, 1.0)]
    samples = [Sample("q", "g", "c\u2028", grade, ("a.jpg",)) for grade in grades]
    folder = ScoreFolder(tmp_path)
    write_scores(folder, scores, samples)
    texts = [(tmp_path / "scores.json").read_text(), *folder.samples.read_text().split("\n")[:-1]]
    texts.append(format_json({"a": [math.nan, (math.inf, {"b": -math.inf})]}))
    for text in texts:
        json.loads(text, parse_constant=_refuse)
    assert texts[-1] == '{"a": ["NaN", ["Infinity", {"b": "-Infinity"}]]}'
    assert folder.read(Scores) == scores
    read = read_samples(folder)
    assert math.isnan(read[0].grades["acc"].score) and read[1:] == samples[1:]


def test_truncated_completions_and_unfit_prompts_are_shown_if_there_are_any():
    assert "truncated" not in format_table([_scores()]) and "unfit" not in format_table([_scores()])
    table = format_table([average("both", [_scores(truncated=1, unfit=2), _scores(truncated=3)])])
    assert [line.split() for line in table.splitlines()][2:4] == [["truncated", "4"], ["unfit", "2"]]
