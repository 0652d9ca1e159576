"""`milora chat`: what is said, kept, and sent; in a pipe, in a terminal, and with a server."""

import io
import json
import shutil
import sys
import threading
import time
import unicodedata
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import milora
from milora import MiloraError
from milora.data.conversation import Conversation
from milora.data.templates import ChatTemplate
from milora.evaluation.chat.local import ChatTarget, load_speakers, open_target
from milora.evaluation.chat.remote import open_server
from milora.evaluation.chat.session import Session, message
from milora.evaluation.chat.speaker import Sampling
from milora.evaluation.chat.stream import Stream
from milora.evaluation.chat.terminal import converse
from milora.evaluation.generation.local import LocalBackend
from milora.evaluation.generation.request import Decoding, Request
from milora.evaluation.target import Target, resolve_target
from milora.run.directory import Permissions
from milora.run.recipe import load_recipe
from tests.conftest import add_milora, train_briefly
from tests.terminal import CTRL_C, CTRL_D, Terminal

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
NOTHING = Permissions(trust_remote_code=False, allow_code_execution=False)


class Echo:
    """Answers with the texts of its messages; "stop" is interrupted and "fail" fails in the middle, "mute" is empty."""

    about, has_turns, has_system = "echo", True, True

    def __init__(self, name="trained", room=1000):
        self.name, self.room, self.seen = name, room, []

    def fits(self, messages):
        return sum(len(one.text) for one in messages) <= self.room

    def answer(self, messages, write):
        self.seen.append([(one.role, one.text) for one in messages])
        question = messages[-1].text
        if question == "mute":
            return True
        write(f"{self.name} ")
        if question == "stop":
            raise KeyboardInterrupt
        if question == "fail":
            raise MiloraError("it broke off", "ask again")
        write(question.upper())
        return "long" not in question


def _type(monkeypatch, capsys, speakers, *lines, system=None):
    """What a terminal shows and stderr says when these lines are typed, and then Ctrl-D; an exception is raised."""
    typed = iter(lines)

    def read(prompt):
        line = next(typed, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read)
    converse(speakers, system)
    return capsys.readouterr()


def test_a_conversation_is_remembered_until_reset(monkeypatch, capsys):
    speaker = Echo()
    _type(monkeypatch, capsys, [speaker], "a", "b", "/reset", "c")
    first = [("user", "a"), ("assistant", "trained A")]
    assert speaker.seen == [first[:1], [*first, ("user", "b")], [("user", "c")]]


def test_system_prompts_are_set_and_removed(monkeypatch, capsys):
    speaker = Echo()
    said = _type(monkeypatch, capsys, [speaker], "a", "/system be brief", "b", "/system", "c", system="be long")
    assert [one[0] for one in speaker.seen] == [("system", "be long"), ("system", "be brief"), ("user", "a")]
    assert "the system prompt is set" in said.err and "there is no system prompt now" in said.err
    speaker.has_system = False
    assert "no room for a system prompt" in _type(monkeypatch, capsys, [speaker], "/system x").err


def test_what_was_said_when_an_answer_stopped_remains(monkeypatch, capsys):
    for broken, told in (("stop", "stopped"), ("fail", "error: it broke off\nhint: ask again")):
        speaker = Echo()
        said = _type(monkeypatch, capsys, [speaker], broken, "b")
        assert told in said.err
        assert speaker.seen[1] == [("user", broken), ("assistant", "trained "), ("user", "b")]


def test_a_question_without_an_answer_is_not_kept(monkeypatch, capsys):
    speaker = Echo()
    _type(monkeypatch, capsys, [speaker], "mute", "b")
    assert speaker.seen[1] == [("user", "b")]


def test_commands(monkeypatch, capsys):
    speaker = Echo()
    said = _type(monkeypatch, capsys, [speaker], "/help", "/nonsense x", "", "  ", " /etc/hosts is what?", "long")
    assert "/reset" in said.err and "Ctrl-C" in said.err
    assert "/nonsense is not a command" in said.err and "cut at its limit" in said.err
    assert [one[-1] for one in speaker.seen] == [("user", " /etc/hosts is what?"), ("user", "long")]
    for end in ("/quit", KeyboardInterrupt(), EOFError()):
        _type(monkeypatch, capsys, [speaker], end, "never")
    assert len(speaker.seen) == 2
    undecodable = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
    assert "not text" in _type(monkeypatch, capsys, [speaker], undecodable).err


def test_each_side_of_a_comparison_has_its_own_history(monkeypatch, capsys):
    sides = [Echo("base"), Echo()]
    said = _type(monkeypatch, capsys, sides, "a", "b")
    assert said.out.startswith("[base]\nbase A\n\n[trained]\ntrained A\n")
    for side in sides:
        assert side.seen[1] == [("user", "a"), ("assistant", f"{side.name} A"), ("user", "b")]


def test_the_oldest_turns_are_forgotten_when_the_context_is_full():
    speaker, told = Echo(room=40), []
    session = Session(speaker, "sys")
    for question in ("a" * 8, "b" * 8, "c" * 8, "d" * 30):
        session.ask(question, lambda _: None, told.append)
    second = [("user", "b" * 8), ("assistant", f"trained {'B' * 8}")]
    assert speaker.seen[2:] == [
        [("system", "sys"), *second, ("user", "c" * 8)],
        [("system", "sys"), ("user", "d" * 30)],
    ]
    assert told == [f"the model's context is full: the oldest turns are forgotten ({number})" for number in (1, 2)]


def test_an_answer_cannot_steer_the_terminal(monkeypatch, capsys):
    said = _type(monkeypatch, capsys, [Echo()], "\x1b]52;c;aGk=\x07\x9b2J é\tx").out
    assert not [one for one in said if unicodedata.category(one) == "Cc" and one not in "\n\t"]
    assert "É\tX" in said


class Letters:
    """A tokenizer whose tokens are the bytes of UTF-8."""

    def decode(self, tokens, skip_special_tokens):
        return bytes(tokens).decode(errors="replace")


@pytest.mark.parametrize(
    ("made", "stops", "pieces", "ended"),
    [
        ("né", (), ["n", "é"], False),
        ("a\nQ: b", ("\nQ:",), ["a"], True),
        ("a\nQb", ("\nQ:",), ["a", "\nQb"], False),
        ("a\n", ("\nQ:",), ["a", "\n"], False),
        ("a\0b", (), ["a"], True),
    ],
)
def test_a_stream_writes_whole_characters_and_no_stop(made, stops, pieces, ended):
    written = []
    stream = Stream(Letters(), [0], stops, written.append)
    stream.put(torch.tensor([[1, 2, 3]]))
    for token in made.encode():
        stream.put(torch.tensor([token]))
    stream.end()
    assert (written, stream.ended) == (pieces, ended)


# --- a model in this process -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(small_model, tmp_path_factory):
    """A MiLoRA adapter that answers otherwise than its base."""
    folder = tmp_path_factory.mktemp("adapter")
    model = train_briefly(add_milora(AutoModelForCausalLM.from_pretrained(small_model)), steps=2)
    model.peft_config["default"].base_model_name_or_path = str(small_model)
    milora.save_milora_as_lora(folder, model)
    return folder


@pytest.fixture
def pipe(call, monkeypatch):
    """Run `milora chat` on lines of stdin; exit code, the objects of stdout, stderr."""

    def pipe(lines, *arguments):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
        code, out, err = call("chat", *arguments)
        return code, [json.loads(line) for line in out.splitlines()], err

    return pipe


@pytest.fixture(scope="module")
def sides(adapter):
    """The two of a comparison."""
    return _speakers(adapter, compare=True)


def _speakers(name, *, new=12, template=None, **options):
    return load_speakers(open_target(str(name), "float32", template, NOTHING), Sampling(new, 0.0), **options)


def _ask(speaker, *texts, system=None):
    said = []
    roles = ["user", "assistant"] * len(texts)
    messages = [message(role, text) for role, text in zip(roles, texts, strict=False)]
    ended = speaker.answer([message("system", system), *messages] if system else messages, said.append)
    return "".join(said), ended, said


def _complete(target, tokenizer, template, question, new=12):
    """The completion that evaluation makes."""
    backend = LocalBackend(target.load(), tokenizer, 1)
    backend.end_turns_of(template)
    ids = template.encode_prompt(tokenizer, Conversation.of_turn(question, "x").prompt)
    (found,) = backend.complete([Request("", tuple(ids), Decoding(new, template.stops))], ())
    return found[0]


def test_an_answer_is_the_completion_of_evaluation_in_pieces(small_model):
    (speaker,) = _speakers(small_model)
    target, tokenizer = resolve_target(str(small_model), "float32"), AutoTokenizer.from_pretrained(small_model)
    for question in ("Name three colors.", "What is <|im_end|>?"):
        text, ended, pieces = _ask(speaker, question)
        expected = _complete(target, tokenizer, ChatTemplate(tokenizer), question)
        assert (text, ended) == (expected.text, expected.ended) and len(pieces) > 3
    assert speaker.about == f"{small_model}: template chat, greedy, at most 12 new tokens"


@pytest.mark.slow
def test_the_base_of_a_comparison_is_the_base_and_shares_its_weights(sides, small_model, adapter):
    base, tuned = sides
    assert (base.name, tuned.name) == ("base", "trained") and base.model is tuned.model
    (alone,), (whole,) = _speakers(small_model), _speakers(adapter)
    expected = _ask(alone, "Hello")[0], _ask(whole, "Hello")[0]
    assert expected[0] != expected[1]
    for _ in range(2):
        assert (_ask(base, "Hello")[0], _ask(tuned, "Hello")[0]) == expected


def test_an_interrupt_leaves_both_sides_of_a_comparison_whole(sides):
    base, tuned = sides
    before = _ask(base, "Hello")[0], _ask(tuned, "Hello")[0]

    def interrupt(_):
        raise KeyboardInterrupt

    for speaker in (base, tuned):
        with pytest.raises(KeyboardInterrupt):
            speaker.answer([message("user", "Hello")], interrupt)
    tuned.model.base_model.disable_adapter_layers()  # where an interrupt came while PEFT enabled its layers again
    assert (_ask(tuned, "Hello")[0], _ask(base, "Hello")[0]) == (before[1], before[0])


@pytest.mark.slow
def test_a_residual_run_and_a_full_one_are_compared_with_their_base(small_model, load_whole, tmp_path):
    model = train_briefly(add_milora(load_whole(), form="residual"), steps=1)
    model.save_pretrained(tmp_path / "residual")
    shutil.copytree(small_model, tmp_path / "full")
    load_whole().to(torch.bfloat16).save_pretrained(tmp_path / "full")
    recipe = load_recipe("quickstart", [f"model.name={small_model}", "model.dtype=float32"])
    target = Target("trained", recipe.model, tmp_path, "run", tmp_path / "residual", "residual", recipe)
    full = replace(target, model=recipe.model.model_copy(update={"name": str(tmp_path / "full")}), adapter=None)
    (alone,) = _speakers(small_model, template="plain")
    for one in (target, full):
        base, tuned = load_speakers(ChatTarget(one, "plain"), alone.prompter.sampling, compare=True)
        (whole,) = load_speakers(ChatTarget(one, "plain"), alone.prompter.sampling)
        assert _ask(base, "Hello")[0] == _ask(alone, "Hello")[0]
        assert _ask(tuned, "Hello")[0] == _ask(whole, "Hello")[0]
        assert (base.model is tuned.model) == (one is target)


def test_the_context_is_kept(small_model):
    (speaker,) = _speakers(small_model, new=5000)
    assert speaker.fits([message("user", "a " * 3000)]) and not speaker.fits([message("user", "a " * 6000)])
    with pytest.raises(MiloraError, match=r"tokens, and the model's context of 8192 has no room"):
        _ask(speaker, "a " * 9000)


def test_a_text_template_has_room_for_one_question(small_model):
    (speaker,) = _speakers(small_model, template="alpaca")
    assert not speaker.has_turns and not speaker.has_system
    with pytest.raises(MiloraError, match="--system: the template alpaca has no room"):
        _speakers(small_model, template="alpaca", system="be brief")
    session = Session(speaker)
    session.ask("Hello", lambda _: None, print)
    assert session.turns == []


def test_lines_are_answered_each_on_its_own(pipe, small_model):
    lines = [
        b"Hello",
        b"",
        b'{"prompt": "Hello"}',
        b'{"messages": [{"role": "user", "content": "Hello"}]}',
        b'{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "Hello"}]}',
        b"[1, 2] is what?",
        b"last, without a newline",
    ]
    options = (small_model, "--dtype", "float32", "--max-new-tokens", "3")
    code, found, err = pipe(b"\n".join(lines), *options)
    assert code == 0 and "template chat, greedy, at most 3 new tokens" in err
    assert [one.get("prompt") for one in found] == ["Hello", "Hello", None, None, "[1, 2] is what?", lines[-1].decode()]
    assert found[0]["answer"] == found[1]["answer"] == found[2]["answer"] and found[0]["ended"] is False
    assert found[3]["messages"][0]["role"] == "system"
    assert pipe(b"Hello", *options, "--system", "s")[1][0]["answer"] == found[3]["answer"]


def test_a_comparison_in_a_pipe_has_both_answers(pipe, adapter):
    code, (found,), _ = pipe(b"Hello\n", adapter, "--dtype", "float32", "--max-new-tokens", "4", "--compare")
    assert code == 0 and found.keys() == {"prompt", "base_answer", "base_ended", "answer", "ended"}
    assert found["answer"] != found["base_answer"]


BAD_LINES = {
    b"\xff\xfe": "not UTF-8 text",
    b"{broken": "not JSON",
    b'{"question": "x"}': "either prompt or messages",
    b'{"prompt": "x", "messages": []}': "either prompt or messages",
    b'{"prompt": 3}': "column prompt is a number (int), not text",
    b'{"prompt": "\\ud83d"}': "half of a character",
    b'{"messages": []}': "no message of the user",
    b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}': "does not end on",
    b'{"messages": [{"role": "tool", "content": "a"}]}': "the roles are",
    b"a " * 9000: "has no room",
}


def test_lines_that_cannot_be_answered_say_so_and_the_others_are_answered(pipe, small_model):
    lines = b"\n".join([*BAD_LINES, b"Hello"])
    code, found, err = pipe(lines, small_model, "--dtype", "float32", "--max-new-tokens", "2")
    assert code == 2 and f"error: {len(BAD_LINES)} of {len(BAD_LINES) + 1} lines were not answered" in err
    for one, reason in zip(found, BAD_LINES.values(), strict=False):
        assert reason in one["error"] and one["hint"] and "answer" not in one
    assert found[-1]["answer"] and len(found) == len(BAD_LINES) + 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "chat needs a TARGET"),
        (("MODEL", "--model", "x"), "chat needs a TARGET"),
        (("MODEL", "--compare"), "--compare: MODEL is a model, which has no base"),
        (("MODEL", "--url", "http://127.0.0.1:9/v1"), "--url: a server has a model and a template of its own"),
        (("--compare", "--url", "http://127.0.0.1:9/v1"), "--url: a server has a model and a template of its own"),
        (("--url", "http://127.0.0.1:9/v1"), "no chat server answers at http://127.0.0.1:9/v1"),
        (("./nowhere",), "the folder does not exist"),
        (("MODEL", "--temperature", "nan"), "--temperature nan is not 0, or from 0.01 to 100"),
        (("MODEL", "--temperature", "-1"), "--temperature -1 is not 0, or from 0.01 to 100"),
        (("MODEL", "--max-new-tokens", "0"), "--max-new-tokens"),
        (("MODEL", "--template", "plain", "--system", "x"), "--system: the template plain has no room"),
    ],
)
def test_bad_options_are_said_before_a_model_is_loaded(pipe, small_model, monkeypatch, arguments, told):
    monkeypatch.setattr("milora.evaluation.target.load_model", lambda _: pytest.fail("the model was loaded"))
    words = [word.replace("MODEL", str(small_model)) for word in arguments]
    code, found, err = pipe(b"Hello\n", *words)
    assert (code, found) == (2, []) and told.replace("MODEL", str(small_model)) in err and "Traceback" not in err


def test_what_is_in_a_run_is_asked_in_the_runs_template(finished):
    _, run = finished
    for name in (run, run / "adapter", run / "export" / "lora"):
        assert open_target(str(name), None, None, NOTHING).template == "plain"
    assert open_target(str(run), "bfloat16", "alpaca", NOTHING).template == "alpaca"
    assert open_target(str(run), "bfloat16", None, NOTHING).target.model.dtype == "bfloat16"


# --- a server --------------------------------------------------------------------------------------------------------


class Faulty(BaseHTTPRequestHandler):
    """Streams the question in capitals, word by word, and does what its last word says."""

    def do_GET(self):
        names = self.server.names
        if names == "page":
            return self._send(200, "<html>", "text/html")
        if names is None:
            return self._send(404, {"error": {"message": "not found"}})
        return self._send(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in names]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append((body, self.headers["Authorization"]))
        *words, order = body["messages"][-1]["content"].split()
        if order == "refuse":
            return self._send(400, {"error": {"message": "the context is full"}})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        if order == "cut":
            self.send_header("Content-Length", "100000")
        self.end_headers()
        for word in words:
            self._event({"choices": [{"index": 0, "delta": {"content": word.upper()}, "finish_reason": None}]})
        if order == "error":
            self._event({"error": {"message": "out of memory"}})
        if order in ("stop", "length"):
            self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": order}]})
            self._event({"choices": [], "usage": {"total_tokens": 3}})
            self.wfile.write(b"data: [DONE]\n\n")
        return None

    def _event(self, content):
        self.wfile.write(b"data: " + json.dumps(content).encode() + b"\n\n")
        self.wfile.flush()

    def _send(self, status, content, kind="application/json"):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def faulty():
    with ThreadingHTTPServer(("127.0.0.1", 0), Faulty) as running:
        running.names, running.bodies, running.daemon_threads = ["small"], [], True
        running.url = f"http://127.0.0.1:{running.server_port}/v1"
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_a_server_gets_the_conversation_and_the_key_of_the_environment(faulty, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    speaker = open_server(faulty.url, None, Sampling(9, 0.5))
    assert _ask(speaker, "a", "b", "c d stop", system="s") == ("CD", True, ["C", "D"])
    assert _ask(speaker, "c length")[1] is False
    (body, key), _ = faulty.bodies
    assert key == "Bearer secret" and "secret" not in speaker.about
    assert [one["content"] for one in body["messages"]] == ["s", "a", "b", "c d stop"]
    expected = {"model": "small", "max_tokens": 9, "temperature": 0.5, "stream": True}
    assert {name: body[name] for name in expected} == expected


def test_an_answer_that_a_server_breaks_off_is_an_error_and_what_was_said_remains(faulty):
    speaker = open_server(faulty.url, "small", Sampling(9, 0.0))
    for order, told in (("cut", "no whole answer"), ("error", "out of memory"), ("end", "broke the answer off")):
        session, said = Session(speaker), []
        with pytest.raises(MiloraError, match=told):
            session.ask(f"a b {order}", said.append, print)
        assert "".join(said) == "AB" and [one.text for one in session.turns] == [f"a b {order}", "AB"]
    session = Session(speaker)
    with pytest.raises(MiloraError, match="the context is full"):
        session.ask("refuse", print, print)
    assert session.turns == []


def test_the_model_at_a_server_is_named_or_the_only_one(faulty):
    sampling = Sampling(9, 0.0)
    with pytest.raises(MiloraError, match="serves small, not other"):
        open_server(faulty.url, "other", sampling)
    faulty.names = ["a", "b"]
    with pytest.raises(MiloraError, match="serves a, b"):
        open_server(faulty.url, None, sampling)
    assert open_server(faulty.url, "b", sampling).name == "b"
    faulty.names = None  # some servers do not say
    assert open_server(faulty.url, "b", sampling).name == "b"
    with pytest.raises(MiloraError, match="does not list its models"):
        open_server(faulty.url, None, sampling)
    faulty.names = "page"  # another kind of server
    with pytest.raises(MiloraError, match="does not list its models"):
        open_server(faulty.url, None, sampling)


def test_a_real_server_streams(llama_server, pipe):
    speaker = open_server(llama_server.url, None, Sampling(24, 0.0))
    assert speaker.name == llama_server.model
    text, ended, pieces = _ask(speaker, "Name three colors.")
    assert ended and len(pieces) > 5 and "Red" in text
    assert _ask(speaker, "Tell me a story.")[1] is False
    lines = b"Name three colors.\n" + b"x " * 3000
    code, found, err = pipe(lines, "--url", llama_server.url, "--max-new-tokens", "24")
    assert code == 2 and found[0]["answer"] == text
    assert "context" in found[1]["error"] and "1 of 2 lines were not answered" in err


# --- a terminal ------------------------------------------------------------------------------------------------------


ENDLESS = ("--dtype", "float32", "--max-new-tokens", "5000", "--temperature", "1.5")


@pytest.mark.slow
def test_in_a_terminal_an_answer_streams_and_ctrl_c_stops_it(small_model):
    with Terminal("chat", small_model, *ENDLESS) as terminal:
        terminal.expect("/help lists the commands")
        terminal.expect("> ")
        terminal.type("Tell me a story.\r")
        terminal.expect(r"story\.\s+\S")  # the answer begins; it would take minutes
        terminal.type(CTRL_C)
        terminal.expect("stopped")
        terminal.expect("> ")
        terminal.type("/reset\r")
        terminal.expect("the conversation starts anew")
        terminal.expect("> ")
        time.sleep(1)  # readline does not notice a signal between its prompt and its wait for a key
        terminal.type(CTRL_C)
        assert terminal.wait() == 0


@pytest.mark.slow
def test_in_a_terminal_a_comparison_is_labeled_and_ctrl_c_stops_one_side(adapter):
    with Terminal("chat", adapter, *ENDLESS, "--compare") as terminal:
        terminal.expect("> ")
        terminal.type("Hello\r")
        for side in ("base", "trained"):
            terminal.expect(rf"\[{side}\]\s+\S")
            terminal.type(CTRL_C)
            terminal.expect("stopped")
        terminal.expect("> ")
        terminal.type(CTRL_D)
        assert terminal.wait() == 0
