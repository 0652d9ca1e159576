"""A judge's server in the test's process: slow, failing, or unreadable, as the words of a question ask for."""

import json
import threading
import time
from collections import Counter
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from milora.evaluation.judges.judge import Question, ask_all
from milora.run.directory import ScoreFolder
from milora.run.judge import JudgeSection


class JudgeServer(ThreadingHTTPServer):
    """Answers a question with `says`, or with its last word, and `logprobs`; words in a question ask for faults.

    Once: "busy" (429), "broken" (500), "torn" (half of a body). Always: "slow", "malformed", "empty", "silent" (no
    log-probabilities), "refused" (400); "held" until `released`, and then not if the client is gone by then (`left`).

    `words` are such words for the questions that contain another. `answered` counts what was answered whole, by
    question; `tried` all tries.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.tried, self.answered, self.bodies, self.keys = Counter(), Counter(), [], set()
        self.says, self.logprobs, self.status = None, [("M", -0.1), ("m", -2.5), ("The", -9.0)], 200
        self.words = {}
        self.lock, self.released, self.left = threading.Lock(), threading.Event(), False

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def section(self, **options):
        return JudgeSection(url=self.url, model="judge", **options)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self._send(200, json.dumps({"object": "list", "data": []}))

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = body["messages"][-1]["content"]
        asked += " ".join(word for part, word in server.words.items() if part in asked)
        with server.lock:
            server.tried[asked] += 1
            server.bodies.append(body)
            server.keys.add(self.headers["Authorization"])
            is_first = server.tried[asked] == 1
        if server.status != 200:
            return self._send(server.status, '{"error": {"message": "not so"}}')
        if "slow" in asked:
            time.sleep(0.2)
        if "held" in asked:
            server.released.wait()
            if server.left:
                return None
        if "refused" in asked:
            return self._send(400, '{"error": {"message": "too long"}}')
        if is_first and "busy" in asked:
            return self._send(429, '{"error": {"message": "wait"}}')
        if is_first and "broken" in asked:
            return self._send(500, '{"error": {"message": "oops"}}')
        if is_first and "torn" in asked:
            return self._send(200, self._answer(asked, body), torn=True)
        with server.lock:
            server.answered[asked] += 1
        return self._send(200, '{"choices": [{"mess' if "malformed" in asked else self._answer(asked, body))

    def _answer(self, asked, body):
        server = self.server
        text = "" if "empty" in asked else server.says or asked.split()[-1]
        logprobs = None
        if body.get("logprobs") and "silent" not in asked:
            top = [{"token": token, "logprob": logprob, "bytes": None} for token, logprob in server.logprobs]
            logprobs = {"content": [{**top[0], "top_logprobs": top}]}
        choice = {"index": 0, "finish_reason": "stop", "logprobs": logprobs}
        choice["message"] = {"role": "assistant", "content": text}
        usage = {"prompt_tokens": len(asked) // 4, "completion_tokens": 1, "total_tokens": len(asked) // 4 + 1}
        return json.dumps({"id": "1", "object": "chat.completion", "created": 0, "choices": [choice], "usage": usage})

    def _send(self, status, text, torn=False):
        data = text.encode()
        self.send_response(status)
        for key, value in (("Content-Type", "application/json"), ("Content-Length", len(data)), ("retry-after-ms", 20)):
            self.send_header(key, str(value))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if torn else data)
        self.close_connection = torn

    def log_message(self, *_):
        pass


def run(server: JudgeServer):
    """Serve while a test runs: the body of a fixture."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=[0.02])
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


def ask(url: str, folder: Path, questions: Sequence[str], concurrency: int) -> None:
    """Ask in a process of its own, which a test kills."""
    section = JudgeSection(url=url, model="judge", concurrency=concurrency)
    ask_all(section, [Question.of(text, 1, top_logprobs=5) for text in questions], ScoreFolder(folder), agreed=True)
