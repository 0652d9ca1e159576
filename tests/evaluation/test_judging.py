"""Benchmarks that a judge grades, from the completions to the scores, in the library and on the command line."""

import json
from pathlib import Path

import pytest

from milora import MiloraError
from milora.evaluation.evaluate import evaluate, locate_samples
from milora.evaluation.scores import Scores, format_table, read_samples
from milora.evaluation.target import resolve_target
from milora.run.sections import EvaluationSection
from tests.evaluation.loopback_judge import JudgeServer, run

RANKING = "[{'model': 'model_1', 'rank': 1}, {'model': 'model_2', 'rank': 2}]"


@pytest.fixture
def server():
    yield from run(JudgeServer())


@pytest.fixture
def score(server, small_model, data_dir, tmp_path, monkeypatch):
    """A function that scores the small model on AlpacaEval, and returns its scores and their folder."""
    monkeypatch.chdir(tmp_path)
    target = resolve_target(str(small_model), "float32")

    def score(task="alpaca_eval_2", limit=4, **judge):
        section = EvaluationSection(
            tasks=[task], limit=limit, max_new_tokens=2, data_dir=data_dir, judge=server.section(**judge)
        )
        (scores,) = evaluate(target, section, yes=True)
        (folder,) = locate_samples(target, task, section)
        return scores, folder

    return score


def test_what_cannot_be_judged_is_excluded_with_its_reason(server, score):
    server.words = {"Broadway": "malformed", "US states": "silent", "kickball": "empty"}
    scores, folder = score(limit=6)
    grades = [sample.grades["win_rate"] for sample in read_samples(folder)]
    reasons = [grade.reason for grade in grades if grade.score is None]
    assert reasons == ["malformed", "no log-probabilities", "empty"]
    assert scores.excluded == len(reasons) and scores.count == 6
    known = [grade.score for grade in grades if grade.score is not None]
    assert scores.headline.value == pytest.approx(sum(known) / len(known)) and len(known) == 6 - len(reasons)
    assert ["excluded", str(len(reasons))] in [line.split() for line in format_table([scores]).splitlines()]
    annotations = json.loads(folder.annotations.read_text())
    assert [one["preference"] is None for one in annotations] == [grade.score is None for grade in grades]


def test_a_judged_task_is_judged_once(server, score):
    first, folder = score()
    asked = len(server.bodies)
    assert score() == (first, folder) and len(server.bodies) == asked == 4
    folder.path.joinpath("scores.json").unlink()  # as if it was killed after the last answer
    again, _ = score()
    assert again.metrics == first.metrics and len(server.bodies) == asked
    assert "judge" in first.settings.judge and folder.read(Scores) == again
    _, official = score(form="official")
    assert official != folder and len(server.bodies) == 2 * asked
    assert score(concurrency=2)[1] == folder  # how fast it is asked decides nothing


def test_both_orders_measure_what_the_place_does(server, score):
    """The judge of this test always prefers what is shown second."""
    scores, folder = score(both_orders=True)
    assert len(server.bodies) == 8
    assert scores.metrics["win_rate"].value == pytest.approx(0.5)
    assert scores.metrics["first_shown"].value == pytest.approx(0.0832, abs=1e-4)
    one_order, _ = score()
    assert "first_shown" not in one_order.metrics


def test_flagged_completions_are_counted(server, score, monkeypatch):
    monkeypatch.setattr("milora.evaluation.judges.alpaca_eval.imitates", lambda text, _: text != "")
    for form in ("official", "corrected"):
        scores, folder = score(form=form)
        flagged = [sample.grades["win_rate"].flagged for sample in read_samples(folder)]
        assert scores.flagged == sum(flagged) > 0
        assert "flagged" in format_table([scores])


def test_a_judge_that_never_says_anything_gives_no_score(server, score):
    server.logprobs = [("The", -0.1)]
    with pytest.raises(MiloraError, match="none of 4 samples could be judged.*neither m nor M") as refused:
        score()
    assert "another judge" in refused.value.hint


def test_a_judge_without_its_prompt_is_refused_before_anything_is_generated(server, small_model, data_dir, tmp_path):
    folder = tmp_path / "instruction" / "alpaca_eval"
    folder.mkdir(parents=True)
    rows = "instruction/alpaca_eval/gpt4_1106_preview_outputs.json.gz"
    (tmp_path / rows).symlink_to(Path(data_dir) / rows)
    target = resolve_target(str(small_model), "float32")
    section = EvaluationSection(tasks=["alpaca_eval_2"], limit=2, data_dir=str(tmp_path), judge=server.section())
    with pytest.raises(MiloraError, match="alpaca_eval_clf.txt does not exist"):
        evaluate(target, section, yes=True)
    (folder / "alpaca_eval_clf.txt").write_text("Which is better, {output_1} or {output_2}?")
    with pytest.raises(MiloraError, match="is not AlpacaEval's: it needs a system and a user turn"):
        evaluate(target, section, yes=True)
    assert not (target.folder / "base").exists()


def test_on_the_command_line(server, small_model, data_dir, call):
    server.says = RANKING
    words = ("eval", small_model, "--dtype", "float32", "--tasks", "alpaca_eval_1", "--limit", 3)
    words += ("--max-new-tokens", 2, "--data-dir", data_dir)
    judge = (f"evaluation.judge.url={server.url}", "evaluation.judge.model=judge")
    code, _, err = call(*words)
    assert code == 2 and "no judge is named" in err and len(err.splitlines()) == 2
    code, _, err = call(*words, *judge)
    assert code == 2 and "no terminal to ask in" in err and "--yes" in err and not server.bodies
    code, out, err = call(*words, *judge, "--yes")
    assert code == 0 and "win_rate" in out and "3 questions to judge: about" in err


@pytest.mark.parametrize("command", [("run", "quickstart"), ("compare", "quickstart")])
def test_a_run_is_refused_before_it_is_paid_for(server, call, command):
    judged = ("evaluation.tasks=[alpaca_eval_2]", f"evaluation.judge.url={server.url}", "evaluation.judge.model=judge")
    code, _, err = call(*command, *judged)
    assert code == 2 and "no terminal to ask in" in err and "--yes" in err
    code, _, err = call(*command, judged[0])
    assert code == 2 and "no judge is named" in err
