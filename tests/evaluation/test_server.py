"""The server backend against a loopback server that is slow, fails, and answers out of order."""

import json
import threading
import time
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from milora import MiloraError
from milora.evaluation.generation.completions import complete_all
from milora.evaluation.generation.request import Decoding, Request
from milora.evaluation.generation.server import ServerBackend
from milora.run.directory import ScoreFolder

DECODING = Decoding(max_new_tokens=7, stops=("stop",))


class Loopback(ThreadingHTTPServer):
    """Completes a prompt with itself in capitals; "slow" ones late, "flaky" ones at a second try, "bad" ones never."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.tried, self.answered, self.bodies = Counter(), Counter(), []
        self.healed = False
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self._send(200, {"object": "list", "data": [{"id": "small", "object": "model", "created": 0, "owned_by": "x"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt, server = body["prompt"], self.server
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
        choice = {"index": 0, "text": prompt.upper(), "finish_reason": "stop", "logprobs": None}
        answer = {"id": "1", "object": "text_completion", "created": 0, "model": "small", "choices": [choice]}
        return self._send(200, answer)

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


def _requests(*prompts, **decoding):
    return [Request(prompt, replace(DECODING, **decoding)) for prompt in prompts]


def _complete(backend, requests, done=()):
    found = {}
    for part in backend.complete(requests, done):
        found |= part
    return found


def test_every_prompt_is_answered_once_in_its_place(server):
    prompts = [f"{('slow', 'flaky', 'plain')[i % 3]} {i}" for i in range(30)]
    backend = ServerBackend(server.url, "small", concurrency=8)
    order = [index for part in backend.complete(_requests(*prompts), set()) for index in part]
    assert sorted(order) == list(range(30)) and order != sorted(order)
    assert set(server.answered.values()) == {1} and len(server.answered) == 30
    assert {(body["temperature"], body["max_tokens"], tuple(body["stop"])) for body in server.bodies} == {
        (0.0, 7, ("stop",))
    }


def test_what_is_done_is_not_asked(server):
    backend = ServerBackend(server.url, "small")
    assert _complete(backend, _requests("a", "b", "c"), {0, 2}) == {1: "B"}
    assert list(server.tried) == ["b"]


def test_beams_are_asked_for_as_vllm_takes_them(server):
    _complete(ServerBackend(server.url, "small"), _requests("a", beams=4))
    assert (server.bodies[0]["use_beam_search"], server.bodies[0]["n"]) == (True, 4)


def test_a_failure_loses_nothing_and_the_next_run_asks_only_for_the_rest(server, tmp_path):
    asked, folder = _requests("one", "bad", "slow two", "flaky three"), ScoreFolder(tmp_path)
    with pytest.raises(MiloraError, match="1 of 4 prompts were not answered.*too long"):
        complete_all(ServerBackend(server.url, "small"), asked, folder)
    server.healed = True
    with folder.completions(0).open("a") as file:
        file.write('{"index": 1, "requ')  # killed while writing
    again = complete_all(ServerBackend(server.url, "small"), asked, folder)
    assert again.texts == ["ONE", "BAD", "SLOW TWO", "FLAKY THREE"]
    assert again.made == 1 and set(server.answered.values()) == {1}


def test_a_wrong_address_and_a_wrong_name(server):
    with pytest.raises(MiloraError, match="serves small, not other"):
        ServerBackend(server.url, "other")
    with pytest.raises(MiloraError, match="no completions server answers"):
        ServerBackend("http://127.0.0.1:9/v1", "small")
