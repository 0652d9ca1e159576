"""Evaluation against a real server, llama.cpp's: what it says of itself, and what its answers carry."""

import json
import math

import pytest

from milora import MiloraError
from milora.evaluation.evaluate import evaluate, locate_samples
from milora.evaluation.generation.request import Decoding, Request
from milora.evaluation.generation.served import PENALTIES, ask_server, connect
from milora.evaluation.generation.server import ServerBackend
from milora.evaluation.judges.judge import Question, ask_all
from milora.evaluation.scores import read_samples
from milora.evaluation.target import resolve_target
from milora.models.base import load_tokenizer
from milora.models.embedded import EMBEDDED, GGUF_FILE
from milora.run.directory import ScoreFolder
from milora.run.judge import JudgeSection
from milora.run.sections import EvaluationSection, ModelSection
from tests.served import CONTEXT

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(ModelSection(name=EMBEDDED))


def _request(tokenizer, text, *, new=24, stops=()):
    return Request(text, tuple(tokenizer(text)["input_ids"]), Decoding(new, stops))


def _complete(backend, request):
    return next(backend.complete([request], ()))[0]


def test_the_server_says_who_it_serves_its_context_and_what_it_takes(llama_server):
    served = ask_server(llama_server.url, llama_server.model)
    says = json.loads(served.identity)
    assert says["model_path"].endswith(GGUF_FILE) and says["meta"]["n_params"] == 134515008
    assert (served.context, served.takes_tokens, served.takes_beams, served.extra) == (CONTEXT, True, False, PENALTIES)
    with pytest.raises(MiloraError, match=f"serves {EMBEDDED}, not other"):
        ask_server(llama_server.url, "other")


def test_completions_are_greedy_and_end_at_stops_and_limits(llama_server, tokenizer):
    backend = ServerBackend(llama_server.url, llama_server.model, tokenizer)
    counted = _request(tokenizer, "1, 2, 3, 4, 5,", new=12)
    whole = _complete(backend, counted)
    assert whole.text.startswith(" 6, 7, 8") and not whole.ended
    assert _complete(backend, counted) == whole
    cut = _complete(backend, _request(tokenizer, "1, 2, 3, 4, 5,", new=12, stops=(" 8",)))
    assert cut.text == " 6, 7," and cut.ended
    chat = "<|im_start|>user\nName three colors.<|im_end|>\n<|im_start|>assistant\n"
    assert _complete(backend, _request(tokenizer, chat)).ended  # at the end of the turn


def test_the_context_that_it_says_is_the_one_that_it_has(llama_server, tokenizer):
    backend = ServerBackend(llama_server.url, llama_server.model, tokenizer)
    with pytest.raises(MiloraError, match="1 of 1 prompts were not answered.*context"):
        _complete(backend, _request(tokenizer, " a" * CONTEXT))


def test_a_benchmark_is_scored_once(llama_server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    target = resolve_target(EMBEDDED, "float32")
    section = EvaluationSection(
        tasks=["arithmetic"], limit=3, max_new_tokens=16, backend="server", url=llama_server.url
    )
    (scores,) = evaluate(target, section)
    assert GGUF_FILE in scores.settings.server and scores.count == 3 and scores.cost.made == 3
    (folder,) = locate_samples(target, "arithmetic", section)
    assert all(sample.completion for sample in read_samples(folder))
    monkeypatch.setattr(ServerBackend, "complete", lambda *_: pytest.fail("asked again"))
    assert evaluate(target, section) == [scores]


def test_answers_carry_log_probabilities(llama_server):
    answer = connect(llama_server.url).chat.completions.create(
        model=llama_server.model,
        messages=[{"role": "user", "content": "Which is better? Answer with m or M alone."}],
        max_tokens=1,
        temperature=0.0,
        logprobs=True,
        top_logprobs=5,
    )
    (first,) = answer.choices[0].logprobs.content
    found = [entry.logprob for entry in first.top_logprobs]
    assert first.top_logprobs[0].token == first.token == answer.choices[0].message.content
    assert len(found) == 5 and found == sorted(found, reverse=True) and 0 < sum(map(math.exp, found)) <= 1


def test_a_judge_gives_its_first_tokens_probabilities_and_is_asked_once(llama_server, tmp_path):
    section = JudgeSection(url=llama_server.url, model=llama_server.model)
    questions, folder = [Question.of("Which is better? Say m or M.", 1, top_logprobs=5)], ScoreFolder(tmp_path)
    (answer,) = ask_all(section, questions, folder, agreed=True)
    assert answer.problem is None and answer.completion_tokens == 1
    probabilities = [math.exp(value) for _, value in answer.top_logprobs]
    assert len(probabilities) == 5 and probabilities == sorted(probabilities, reverse=True) and sum(probabilities) <= 1
    asked = folder.judgments.read_bytes()
    assert ask_all(section, questions, folder) == [answer]  # without being agreed to, since nothing is asked
    assert folder.judgments.read_bytes() == asked
