"""The server backend against a loopback server that is slow, fails, and answers out of order."""

import json
import threading
import time
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from milora import MiloraError
from milora.evaluation.evaluate import evaluate, locate_samples
from milora.evaluation.generation.completions import complete_all
from milora.evaluation.generation.request import Completion, Decoding, Request
from milora.evaluation.generation.served import PENALTIES, PROBE, ask_server
from milora.evaluation.generation.server import ServerBackend
from milora.evaluation.scores import format_table, read_samples
from milora.evaluation.target import resolve_target
from milora.run.directory import ScoreFolder
from milora.run.sections import EvaluationSection

DECODING = Decoding(max_new_tokens=7, stops=("stop",))
LLAMA = {"owned_by": "llamacpp", "meta": {"n_params": 134515008, "size": 91700000}}
VLLM = {"owned_by": "vllm", "root": "HuggingFaceTB/SmolLM2-135M", "max_model_len": 8192}


class Letters:
    """A tokenizer whose tokens are characters, with a BOS that it adds, and a control token."""

    bos_token, bos_token_id = "^", ord("^")

    def __call__(self, text):
        return {"input_ids": [ord(letter) for letter in f"^{text.replace('</s>', '$')}"]}

    def ids(self, text):
        return tuple(map(ord, f"^{text}"))


class Loopback(ThreadingHTTPServer):
    """Completes a prompt with itself in capitals; "slow" ones late, "flaky" ones at a second try, "bad" ones never.

    `refuses` names keys, or "tokens", that are a bad request; the other attributes are what the server says of itself.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.tried, self.answered, self.bodies, self.probes = Counter(), Counter(), [], []
        self.healed, self.refuses, self.finish_reason = False, set(), "stop"
        self.name, self.entry, self.props, self.adapters, self.fingerprint = "small", {}, None, None, None
        self.adds = 0  # tokens to every prompt
        self.says = None  # instead of the prompt in capitals
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        pages = {"/props": server.props, "/lora-adapters": server.adapters}
        entry = {"id": server.name, "object": "model", "created": int(time.time()), "owned_by": "x", **server.entry}
        pages["/v1/models"] = {"object": "list", "data": [entry]}
        found = pages.get(self.path)
        self._send(200, found) if found is not None else self._send(404, {"error": {"message": "not found"}})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt, server = body["prompt"], self.server
        if server.refuses & {*body, *(["tokens"] if isinstance(prompt, list) else [])}:
            return self._send(400, {"error": {"message": "a bad request"}})
        if prompt in (PROBE, "Hello"):
            server.probes.append(body)
            return self._answer("x", len(prompt))
        length = len(prompt)
        if isinstance(prompt, list):
            prompt = "".join(map(chr, prompt)).removeprefix("^")
        with server.lock:
            server.tried[prompt] += 1
            server.bodies.append(body)
            tries = server.tried[prompt]
        if "slow" in prompt:
            time.sleep(0.3)
        if "flaky" in prompt and tries == 1:
            return self._send(503, {"error": {"message": "busy"}})
        if "bad" in prompt and not server.healed:
            return self._send(400, {"error": {"message": "too long"}})
        server.answered[prompt] += 1
        return self._answer(server.says or prompt.upper(), length)

    def _answer(self, text, length):
        server = self.server
        choice = {"index": 0, "text": text, "finish_reason": server.finish_reason, "logprobs": None}
        usage = {"prompt_tokens": length + server.adds, "completion_tokens": 1, "total_tokens": length + 1}
        answer = {"id": "1", "object": "text_completion", "created": 0, "model": server.name, "choices": [choice]}
        self._send(200, {**answer, "usage": usage, "system_fingerprint": server.fingerprint})

    def _send(self, status, content):
        data = json.dumps(content).encode()
        self.send_response(status)
        for key, value in (("Content-Type", "application/json"), ("Content-Length", len(data)), ("retry-after-ms", 20)):
            self.send_header(key, str(value))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Loopback() as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()
    ask_server.cache_clear()


def _requests(*prompts, **decoding):
    return [Request(prompt, Letters().ids(prompt), replace(DECODING, **decoding)) for prompt in prompts]


def _backend(server, **options):
    ask_server.cache_clear()
    return ServerBackend(server.url, server.name, Letters(), **options)


def _complete(backend, requests, done=()):
    found = {}
    for part in backend.complete(requests, done):
        found |= part
    return {index: completion.text for index, completion in found.items()}


def test_every_prompt_is_answered_once_in_its_place(server):
    prompts = [f"{('slow', 'flaky', 'plain')[i % 3]} {i}" for i in range(30)]
    backend = _backend(server, concurrency=8)
    order = [index for part in backend.complete(_requests(*prompts), set()) for index in part]
    assert sorted(order) == list(range(30)) and order != sorted(order)
    assert set(server.answered.values()) == {1} and len(server.answered) == 30
    assert {(body["temperature"], body["max_tokens"], tuple(body["stop"])) for body in server.bodies} == {
        (0.0, 7, ("stop",))
    }


def test_what_is_done_is_not_asked(server):
    backend = _backend(server)
    assert _complete(backend, _requests("a", "b", "c"), {0, 2}) == {1: "B"}
    assert list(server.tried) == ["b"]


def test_beams_are_asked_for_as_vllm_takes_them(server):
    server.entry = VLLM
    _complete(_backend(server), _requests("a", beams=4))
    assert (server.bodies[0]["use_beam_search"], server.bodies[0]["n"]) == (True, 4)
    server.entry = LLAMA
    with pytest.raises(MiloraError, match="of servers only vLLM's is known to search"):
        _complete(_backend(server), _requests("a", beams=4))


def test_a_failure_loses_nothing_and_the_next_run_asks_only_for_the_rest(server, tmp_path):
    asked, folder = _requests("one", "bad", "slow two", "flaky three"), ScoreFolder(tmp_path)
    with pytest.raises(MiloraError, match="1 of 4 prompts were not answered.*too long"):
        complete_all(_backend(server), asked, folder)
    server.healed = True
    with folder.completions(0).open("a") as file:
        file.write('{"index": 1, "requ')  # killed while writing
    again = complete_all(_backend(server), asked, folder)
    assert [one.text for one in again.completions] == ["ONE", "BAD", "SLOW TWO", "FLAKY THREE"]
    assert again.made == 1 and set(server.answered.values()) == {1}


def test_a_wrong_address_and_a_wrong_name(server):
    with pytest.raises(MiloraError, match="serves small, not other"):
        ask_server(server.url, "other")
    with pytest.raises(MiloraError, match="no completions server answers"):
        ask_server("http://127.0.0.1:9/v1", "small")
    server.refuses = {"prompt"}
    with pytest.raises(MiloraError, match="refuses to complete text"):
        ask_server(server.url, "small")


@pytest.mark.parametrize(
    ("refuses", "adds", "sent"),
    [
        (set(), 0, (True, PENALTIES)),
        ({"repeat_penalty"}, 0, (True, {})),
        ({"tokens"}, 0, (False, PENALTIES)),
        ({"tokens", "repeat_penalty"}, 0, (False, {})),
        (set(), 1, (False, PENALTIES)),  # it adds a BOS to tokens, too
    ],
)
def test_what_a_server_takes_is_sent(server, refuses, adds, sent):
    server.refuses, server.adds = refuses, adds
    served = ask_server(server.url, "small")
    assert (served.takes_tokens, served.extra) == sent
    ((body),) = server.bodies if _complete(_backend(server), _requests("ask")) else ()
    assert body["prompt"] == (list(map(ord, "^ask")) if sent[0] else "ask")
    for key, value in {"temperature": 0, "top_p": 1, "presence_penalty": 0, "frequency_penalty": 0, **sent[1]}.items():
        assert body[key] == value


def test_text_gets_one_bos_and_no_control_tokens(server):
    server.refuses = {"tokens"}
    rendered = Request("^hello", Letters().ids("hello"), DECODING)  # as chat templates write their BOS
    assert _complete(_backend(server), [rendered]) == {0: "HELLO"} and server.bodies[0]["prompt"] == "hello"
    with pytest.raises(MiloraError, match="would read other tokens in 'say </s>'"):
        _complete(_backend(server), _requests("say </s>"))
    server.refuses = set()
    assert _complete(_backend(server), _requests("say </s>")) == {0: "SAY </S>"}


def test_completions_that_ended_by_length_are_told(server):
    server.finish_reason = "length"
    (found,) = _backend(server).complete(_requests("a"), set())
    assert found == {0: Completion("A", ended=False)}


SAYING = [
    ({"entry": VLLM}, 8192),
    ({"entry": LLAMA, "props": {"model_path": "/m.gguf", "default_generation_settings": {"n_ctx": 512}}}, 512),
    ({"fingerprint": "fp_1"}, None),
]


@pytest.mark.parametrize(("says", "context"), SAYING, ids=["vllm", "llama.cpp", "fingerprint"])
def test_a_server_that_says_what_it_serves(server, says, context):
    vars(server).update(says)
    found = ask_server(server.url, "small")
    assert found.identity and found.context == context
    ask_server.cache_clear()
    assert ask_server(server.url, "small") == found
    for change in (
        {"entry": {**server.entry, "root": "other"}},
        {"props": {"model_path": "/other.gguf"}},
        {"adapters": [{"id": 0, "path": "a.gguf", "scale": 1.0}]},
        {"fingerprint": "fp_2"},
    ):
        before = {name: getattr(server, name) for name in change}
        vars(server).update(change)
        ask_server.cache_clear()
        assert ask_server(server.url, "small").identity != found.identity
        vars(server).update(before)


@pytest.mark.parametrize("fingerprint", [None, "fp_ollama"])
def test_a_server_that_does_not_say_what_it_serves(server, fingerprint):
    server.fingerprint = fingerprint
    assert ask_server(server.url, "small").identity is None


@pytest.fixture
def served(server, small_model, tmp_path, monkeypatch):
    """A function that scores the small model by the loopback server, as a new process, and returns its completions."""
    monkeypatch.chdir(tmp_path)
    server.name, server.says = str(small_model), "one"
    target = resolve_target(str(small_model), "float32")
    section = EvaluationSection(tasks=["arithmetic"], limit=3, backend="server", url=server.url)

    def score(**says):
        ask_server.cache_clear()
        vars(server).update(says)
        (scores,) = evaluate(target, section)
        (folder,) = locate_samples(target, "arithmetic", section)
        return scores, [sample.completion for sample in read_samples(folder)]

    return score


def test_two_models_behind_one_name_share_no_completion(server, served):
    first, texts = served(entry=VLLM, says="one")
    assert texts == ["one"] * 3 and "SmolLM2-135M" in first.settings.server
    assert served(entry={**VLLM, "root": "other"}, says="two")[1] == ["two"] * 3
    asked = len(server.bodies)
    assert served(entry=VLLM, says="three")[1] == ["one"] * 3  # the first model again: it is not asked
    assert len(server.bodies) == asked


def test_an_anonymous_server_is_asked_again_unless_it_was_killed(server, served, capsys, monkeypatch):
    assert served(says="one")[1] == ["one"] * 3
    assert "scored again" not in capsys.readouterr().err
    assert served(says="two")[1] == ["two"] * 3
    assert "does not say what" in capsys.readouterr().err
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("milora.evaluation.evaluate.write_scores", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        served(says="three")
    assert served(says="four")[1] == ["three"] * 3


def test_what_does_not_fit_a_server_is_counted(server, served, capsys):
    scores, _ = served(entry={**VLLM, "max_model_len": 30}, finish_reason="length")
    asked = [body["max_tokens"] for body in server.bodies]
    assert scores.unfit == 3 - len(asked) and 0 < len(asked) < 3 and all(count < 40 for count in asked)
    assert scores.truncated == len(asked)
    assert f"{len(asked)} of 3 prompts fewer than 40 new tokens; {scores.unfit} do not fit" in capsys.readouterr().err
    table = format_table([scores])
    assert ["truncated", str(len(asked))] in [line.split() for line in table.splitlines()]
    with pytest.raises(MiloraError, match="has room for no prompt"):
        served(entry={**VLLM, "max_model_len": 10})


def test_hf_and_a_server_share_no_completion(served, small_model):
    _, texts = served(entry=VLLM, says="one")
    section = EvaluationSection(tasks=["arithmetic"], limit=3, max_new_tokens=4)
    target = resolve_target(str(small_model), "float32")
    (scores,) = evaluate(target, section)
    (folder,) = locate_samples(target, "arithmetic", section)
    assert scores.settings.server is None and "one" not in [sample.completion for sample in read_samples(folder)]
