"""Benchmarks of instruction following from end to end: a small model answers, and a loopback judge grades."""

import pytest

from milora import MiloraError
from milora.data.templates import CHAT, resolve_template
from milora.evaluation.benchmarks import BENCHMARKS, SUITES
from milora.evaluation.check import expand
from milora.evaluation.evaluate import evaluate, locate_samples
from milora.evaluation.generation.local import LocalBackend
from milora.evaluation.posing import choose_prompt
from milora.evaluation.scores import format_table, read_samples
from milora.evaluation.target import Target, resolve_target
from milora.run.sections import EvaluationSection
from tests.evaluation.loopback_judge import JudgeServer, run
from tests.evaluation.test_ifeval import needs_sentences


@pytest.fixture
def server():
    yield from run(JudgeServer())


@pytest.fixture
def target(small_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return resolve_target(str(small_model), "float32")


def _section(data_dir, task, server=None, **options):
    judge = {"judge": server.section()} if server else {}
    return EvaluationSection(tasks=[task], limit=2, max_new_tokens=4, data_dir=data_dir, **judge, **options)


@needs_sentences
def test_ifeval(target, data_dir):
    section = _section(data_dir, "ifeval")
    (scores,) = evaluate(target, section)
    assert list(scores.metrics) == ["prompt_strict", "prompt_loose", "instruction_strict", "instruction_loose"]
    assert scores.primary == "prompt_strict" and scores.excluded is None
    (folder,) = locate_samples(target, "ifeval", section)
    first, second = read_samples(folder)
    assert (len(first.grades["prompt_strict"].parts), len(second.grades["prompt_loose"].parts)) == (3, 1)
    assert format_table([scores]).split("\n")[1].startswith("ifeval          prompt_strict        2")


@needs_sentences
def test_each_benchmarks_answers_end_as_its_own_template_ends_them(target, data_dir, monkeypatch):
    """A model may serve one benchmark with its chat template, and another with an official prompt of plain text."""
    ends = []
    monkeypatch.setattr(LocalBackend, "end_turns_of", lambda _, chat: ends.append(chat and chat.text))
    evaluate(target, EvaluationSection(tasks=["ifeval", "arithmetic"], limit=1, max_new_tokens=1, data_dir=data_dir))
    assert ends[-3:] == [CHAT, None, None]  # the last one is for lm-eval's tasks


def test_a_benchmark_without_an_official_prompt_is_asked_with_the_models_own_template(target, monkeypatch):
    tokenizer = target.load_tokenizer()
    messages = BENCHMARKS["arithmetic"].load(None, 1)[0].prompt
    own = resolve_template(CHAT, lambda: tokenizer)
    assert choose_prompt(BENCHMARKS["ifeval"], None, tokenizer, None).render(messages) == own.render(messages)
    assert choose_prompt(BENCHMARKS["ifeval"], "plain", tokenizer, None).render(messages).startswith("Question: ")
    assert choose_prompt(BENCHMARKS["arithmetic"], None, tokenizer, None).render(messages).startswith("Question: ")
    monkeypatch.setattr(tokenizer, "chat_template", None)
    assert choose_prompt(BENCHMARKS["ifeval"], None, tokenizer, None).render(messages) == messages[0].text


def test_mt_bench_asks_a_second_time_and_a_restart_asks_nothing_again(target, data_dir, server, monkeypatch):
    server.says = "Good. Rating: [[7]]"
    section = _section(data_dir, "mt_bench", server)
    (scores,) = evaluate(target, section, yes=True)
    assert {name: metric.value for name, metric in scores.metrics.items()} == {"rating": 7, "turn_1": 7, "turn_2": 7}
    assert (scores.count, scores.unit, scores.truncated) == (4, "number", 4)
    assert "7.000" in format_table([scores]) and "%" not in format_table([scores]).split("\n")[1]
    (folder,) = locate_samples(target, "mt_bench", section)
    first, _, second, _ = read_samples(folder)
    asked = [body["messages"][1]["content"] for body in server.bodies]
    (both,) = [text for text in asked if second.question in text]
    assert first.question in both and first.completion.strip() in both and second.completion.strip() in both
    assert len(asked) == 4

    (folder.path / "scores.json").unlink()
    monkeypatch.setattr(LocalBackend, "_generate", lambda *_: pytest.fail("a completion was made again"))
    assert evaluate(target, section, yes=True)[0].metrics == scores.metrics and len(server.bodies) == 4


def test_what_could_not_be_rated_is_excluded_and_counted(target, data_dir, server):
    server.says = "I would rather not."
    with pytest.raises(MiloraError, match="none of 4 samples could be judged"):
        evaluate(target, _section(data_dir, "mt_bench", server), yes=True)


def test_a_template_of_one_turn_is_refused_before_the_model_is_loaded(target, data_dir, server, monkeypatch):
    tokenizer = target.load_tokenizer()
    monkeypatch.setattr(tokenizer, "chat_template", None)
    monkeypatch.setattr(Target, "load_tokenizer", lambda _: tokenizer)
    monkeypatch.setattr(Target, "load", lambda _: pytest.fail("the model was loaded"))
    with pytest.raises(MiloraError, match="room for one question and its answer"):
        evaluate(target, _section(data_dir, "mt_bench", server), yes=True)


@pytest.mark.slow
def test_follow_bench(target, data_dir, server):
    """The judge is asked about what no rule grades, and the average over categories is a score of its own."""
    server.says = "['YES']"
    section = _section(data_dir, "follow_bench", server)
    found = {scores.task: scores for scores in evaluate(target, section, yes=True)}
    assert len(found) == 7 and found["follow_bench"].count == 12
    shared = found["follow_bench"].metrics
    assert shared["hsr_1"].value == sum(found[task].metrics["hsr_1"].value for task in list(found)[:6]) / 6
    # Level 2 asks for a list of two, and gets one of one: excluded, but not what a rule grades.
    assert found["follow_style"].excluded == 1 and "hsr_2" not in found["follow_style"].metrics
    assert "hsr_2" not in shared and found["follow_example"].excluded is None
    assert "–" not in format_table(found.values()) and "excluded" in format_table(found.values())


def test_a_suite_is_a_name_for_several_tasks():
    assert expand(EvaluationSection(tasks=["instruction", "ifeval"])) == SUITES["instruction"]
    assert expand(EvaluationSection(tasks=["alpaca_eval_2", "ifeval", "follow_bench"])) == SUITES["instruction"]
