"""Asking a judge: nothing is lost, nothing is asked twice, and what it costs is said before."""

import io
import json
import sys
import time

import pytest

from milora import MiloraError
from milora.evaluation.judges.cost import check_judge, estimate_cost
from milora.evaluation.judges.judge import Question, ask_all
from milora.run.directory import ScoreFolder
from milora.run.judge import JudgeSection
from milora.run.recipe import with_overrides
from milora.run.sections import EvaluationSection
from tests.evaluation.loopback_judge import JudgeServer, ask, run
from tests.process import CONTEXT

FAULTS = ("plain", "slow", "busy", "broken", "torn")


@pytest.fixture
def server():
    yield from run(JudgeServer())


def _questions(*texts):
    return [Question.of(text, 1, system="Judge.", top_logprobs=5) for text in texts]


def _ask(server, questions, folder, **options):
    return ask_all(server.section(**options), questions, ScoreFolder(folder), agreed=True)


def test_faults_lose_nothing_and_nothing_is_asked_twice(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    texts = [f"{FAULTS[index % len(FAULTS)]} question w{index}" for index in range(20)]
    questions = _questions(*texts, texts[0])  # the last one is equal to the first
    answers = _ask(server, questions, tmp_path)
    assert [answer.text for answer in answers] == [text.split()[-1] for text in (*texts, texts[0])]
    assert {answer.top_logprobs for answer in answers} == {(("M", -0.1), ("m", -2.5), ("The", -9.0))}
    assert {answer.problem for answer in answers} == {None} and answers[0].prompt_tokens > 0
    assert set(server.answered) == set(texts) and set(server.answered.values()) == {1}
    assert {text for text in texts if server.tried[text] == 2} == {
        text for text in texts if text.split()[0] in FAULTS[2:]
    }
    assert _ask(server, questions, tmp_path) == answers and set(server.answered.values()) == {1}
    assert server.keys == {"Bearer secret"} and "secret" not in ScoreFolder(tmp_path).judgments.read_text()


def test_a_request_is_what_was_asked_for(server, tmp_path):
    _ask(server, _questions("one"), tmp_path)
    _ask(server, [Question.of("two", 100)], tmp_path)
    first, second = server.bodies
    messages = [{"role": "system", "content": "Judge."}, {"role": "user", "content": "one"}]
    asked = {"model": "judge", "messages": messages, "max_tokens": 1, "temperature": 0.0, "logprobs": True}
    assert first == {**asked, "top_logprobs": 5}
    assert second.keys() == {"model", "messages", "max_tokens", "temperature"}


def test_another_question_or_another_judge_is_asked(server, tmp_path):
    _ask(server, _questions("one"), tmp_path)
    _ask(server, [Question.of("one", 2, system="Judge.", top_logprobs=5)], tmp_path)
    ask_all(JudgeSection(url=server.url, model="other"), _questions("one"), ScoreFolder(tmp_path), agreed=True)
    assert server.answered["one"] == 3


def test_what_cannot_be_read_is_an_answer_and_not_asked_again(server, tmp_path):
    questions = _questions("malformed a", "empty b", "silent c", "refused d", "plain e")
    answers = _ask(server, questions, tmp_path)
    problems = [answer.problem for answer in answers]
    assert problems == ["malformed", "empty", None, "refused with 400", None]
    assert answers[2].top_logprobs is None
    tried = dict(server.tried)
    assert _ask(server, questions, tmp_path) == answers and server.tried == tried
    stored = [json.loads(line) for line in ScoreFolder(tmp_path).judgments.read_text().split("\n") if line]
    assert '{"choices": [{"mess' in [one["body"] for one in stored]  # as it came


def test_a_judge_that_refuses_everything_is_not_the_questions_fault(server, tmp_path):
    server.status = 400
    with pytest.raises(MiloraError, match="refuses all questions.*not so"):
        _ask(server, _questions("one", "two"), tmp_path)
    server.status = 200
    assert [answer.text for answer in _ask(server, _questions("one", "two"), tmp_path)] == ["one", "two"]


def test_a_failure_keeps_what_was_answered(server, tmp_path):
    assert _ask(server, _questions("one"), tmp_path)
    server.status = 401
    with pytest.raises(MiloraError, match="2 of 2 questions were not answered.*401") as refused:
        _ask(server, _questions("one", "two", "three"), tmp_path)
    assert "run the same command again" in refused.value.hint
    server.status = 200
    assert [answer.text for answer in _ask(server, _questions("one", "two", "three"), tmp_path)] == [
        "one",
        "two",
        "three",
    ]
    assert set(server.answered.values()) == {1}


def test_a_half_written_line_is_asked_again(server, tmp_path):
    questions, folder = _questions("one", "two"), ScoreFolder(tmp_path)
    first = _ask(server, questions, tmp_path, concurrency=1)
    folder.judgments.write_text(folder.judgments.read_text()[:-20])
    assert _ask(server, questions, tmp_path) == first
    assert server.answered == {"one": 1, "two": 2}


@pytest.mark.slow
def test_a_killed_process_has_lost_nothing(server, tmp_path):
    texts = [*(f"plain {index}" for index in range(6)), "held x", "held y", *(f"slow {index}" for index in range(3))]
    process = CONTEXT.Process(target=ask, args=(server.url, tmp_path, texts, 2))
    process.start()
    file = ScoreFolder(tmp_path).judgments
    while server.tried["held y"] == 0 or file.read_text().count('"status"') < 6:
        assert process.exitcode is None
        time.sleep(0.02)
    process.kill()
    process.join()
    server.left = True
    server.released.set()
    time.sleep(0.2)
    server.left = False
    questions = [Question.of(text, 1, top_logprobs=5) for text in texts]
    answers = _ask(server, questions, tmp_path)
    assert [answer.text for answer in answers] == [text.split()[-1] for text in texts]
    assert set(server.answered) == set(texts) and set(server.answered.values()) == {1}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_costs_are_said_and_agreed_to_before_the_first_call(server, tmp_path, monkeypatch, capsys):
    questions, folder = _questions("x" * 4000, "y" * 4000), ScoreFolder(tmp_path)
    section = server.section(price_in=10.0, price_out=30.0)
    with pytest.raises(MiloraError, match="no terminal to ask in") as refused:
        ask_all(section, questions, folder)
    assert "--yes" in refused.value.hint
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    with pytest.raises(MiloraError, match="not agreed to"):
        ask_all(section, questions, folder)
    assert not server.bodies
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    ask_all(section, questions, folder)
    said = capsys.readouterr().err
    assert "2 questions to judge: about 2,003 tokens, and at most 2 back; about 0.02 at its prices" in said
    monkeypatch.setattr(sys, "stdin", Terminal(""))
    ask_all(section, questions, folder)  # all are answered: there is nothing to ask, or to agree to
    assert "questions" not in capsys.readouterr().err
    assert "prices are not known" in estimate_cost(server.section(), [("x" * 400, 100)])


def test_a_judge_is_checked_before_anything_is_paid_for(server, monkeypatch):
    check_judge(server.section(), ["alpaca_eval_2"], can_agree=True)
    assert not server.bodies
    with pytest.raises(MiloraError, match="grades alpaca_eval_2, and no judge is named"):
        check_judge(JudgeSection(), ["alpaca_eval_2"], can_agree=True)
    with pytest.raises(MiloraError, match="no terminal to ask in"):
        check_judge(server.section(), ["alpaca_eval_2"], can_agree=False)
    with pytest.raises(MiloraError, match="no judge answers at"):
        check_judge(JudgeSection(url="http://127.0.0.1:9/v1", model="judge"), ["alpaca_eval_2"], can_agree=True)


def test_a_judge_in_a_recipe_and_on_the_command_line():
    judge = "evaluation.judge"
    given = [f"{judge}.url=http://x/v1", f"{judge}.model=m", f"{judge}.form=official"]
    found = with_overrides(EvaluationSection(), {"limit": 3}, given)
    assert (found.judge.url, found.judge.form, found.limit) == ("http://x/v1", "official", 3)
    for wrong, message in (
        ("url=http://x/v1", "a judge needs both"),
        ("urll=http://x/v1", "judge.urll is not a key: did you mean url"),
        ("form=best", "judge.form"),
        ("price_in=1", "set both"),
        ("url=https://user:key@host/v1", "set OPENAI_API_KEY instead"),
    ):
        with pytest.raises(MiloraError, match=message):
            with_overrides(EvaluationSection(), {}, [f"{judge}.{wrong}"])
