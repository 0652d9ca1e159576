"""Hostile programs in the sandbox: stopped, failed, and nothing outside is touched, with all layers and with few.

Every program bounds itself, so that even a sandbox that fails does no harm.
"""

import os
import socket
import threading
import time
from pathlib import Path

import pytest

from milora import MiloraError
from milora.data.rows import load_rows
from milora.evaluation.benchmarks.humaneval import grade_programs
from milora.evaluation.evaluate import evaluate
from milora.evaluation.sandbox import programs
from milora.evaluation.sandbox.programs import run_program, run_programs
from milora.evaluation.target import Target, resolve_target
from milora.run.sections import EvaluationSection

HOSTILE = {
    "endless loop": "import time\nend = time.time() + 30\nwhile time.time() < end: pass",
    "endless loop, deaf": "import signal, time\n"
    "for s in (2, 15, 24): signal.signal(s, signal.SIG_IGN)\nend = time.time() + 30\nwhile time.time() < end: pass",
    "sleep": "import time\ntime.sleep(30)",
    "10 GB": "x = bytearray(10 * 2**30)",
    "10 GB in small pieces": "x = [bytes(2**20) for _ in range(10 * 2**10)]",
    "1 GB of output": "import sys\nfor _ in range(2**10): sys.stdout.write('x' * 2**20)",
    "1 GB of errors": "import sys\nfor _ in range(2**10): sys.stderr.write('x' * 2**20)",
    "1 GB in a file": "f = open('big', 'wb')\nfor _ in range(2**10): f.write(bytes(2**20)); f.flush()",
    "fork": "import os\nfor _ in range(20): os.fork()",
    "subprocess": "import subprocess\nsubprocess.run(['sleep', '30'])",
    "_posixsubprocess": "import _posixsubprocess",
    "system": "import os\nassert os.system('true') == 0",
    "exec": "import os\nos.execv('/bin/true', ['true'])",
    "spawn": "import os\nos.posix_spawn('/bin/true', ['true'], {})",
    "kill the parent": "import os, signal\nos.kill(os.getppid(), signal.SIGTERM)",
    "ctypes": "import ctypes\nctypes.CDLL(None).getpid()",
    "remove": "import os\nos.remove(CANARY)",
    "unlink": "from pathlib import Path\nPath(CANARY).unlink()",
    "rmtree": "import shutil, os\nshutil.rmtree(os.path.dirname(CANARY))",
    "rename": "import os\nos.rename(CANARY, 'mine')",
    "overwrite": "open(CANARY, 'w').write('gone')",
    "append": "open(CANARY, 'a').write('gone')",
    "truncate": "import os\nos.truncate(CANARY, 0)",
    "open for writing": "import os\nos.open(CANARY, os.O_WRONLY | os.O_TRUNC)",
    "bytes path": "import os\nos.remove(CANARY.encode())",
    "dots": "import os\nos.remove('../' * 20 + CANARY)",
    "chdir": "import os\nos.chdir(os.path.dirname(CANARY))\nos.remove(os.path.basename(CANARY))",
    "by descriptor": "import os\nd = os.open(os.path.dirname(CANARY), os.O_RDONLY)\n"
    "os.unlink(os.path.basename(CANARY), dir_fd=d)",
    "symlink": "import os\nos.symlink(CANARY, 'link')\nopen('link', 'w').write('gone')",
    "chmod": "import os\nos.chmod(CANARY, 0)",
    "new file beside": "open(CANARY + '2', 'w').write('x')",
    "tampering": "import __main__, os\n__main__.FORBIDDEN = __main__.CHANGES_FILES = ()\nstr.startswith = None\n"
    "os.remove(CANARY)",
    "tampering with what the hook calls": "import builtins, os\n"
    "builtins.any = builtins.isinstance = lambda *a: False\nbuiltins.int = object\nos.remove(CANARY)",
    "str that lies": "class S(str):\n    split = lambda *a: []\n    __getitem__ = lambda *a: ''\n"
    "open(S(CANARY), 'w').close()",
    "open by descriptor": "import os\nd = os.open(os.path.dirname(CANARY), os.O_RDONLY)\n"
    "os.open(os.path.basename(CANARY), os.O_WRONLY | os.O_TRUNC, dir_fd=d)",
    "read": "open(CANARY).read()",
    "mknod": "import os\nos.mknod(CANARY + '2')",
    "mkfifo": "import os\n[f for f in os.supports_dir_fd if f.__name__ == 'mkfifo'][0](CANARY + '2')",
    "sqlite": "import sqlite3\nc = sqlite3.connect(CANARY + '2')\nc.execute('create table t(x)')",
    "readline": "import readline\nreadline.write_history_file(CANARY)",
    "shared memory": "import _posixshmem, os\n_posixshmem.shm_open('/milora_test', os.O_CREAT | os.O_RDWR, mode=384)\n"
    "_posixshmem.shm_unlink('/milora_test')",
    "another interpreter": "import _xxsubinterpreters as s\n"
    "s.run_string(s.create(), 'import os; os.remove(%r)' % CANARY)",
    "_posixsubprocess by another name": "import importlib.util as u, importlib.machinery as m, _json\n"
    "f = _json.__file__.replace('_json', '_posixsubprocess')\n"
    "l = m.ExtensionFileLoader('a._posixsubprocess', f)\n"
    "assert u.module_from_spec(u.spec_from_loader('a._posixsubprocess', l)).fork_exec",
    "the parent's limits": "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CORE)",
    "the parent's environment": "import os\nopen('/proc/%d/environ' % PARENT, 'rb').read()",
    "signal by pidfd": "import os, signal\nsignal.pidfd_send_signal(os.pidfd_open(os.getppid()), 0)",
    "300 MB in many files": "for i in range(100): open(str(i), 'wb').write(bytes(3 * 2**20))",
    "3000 folders deep": "import os\nfor _ in range(3000):\n    os.mkdir('a')\n    os.chdir('a')",
    "os.write in the middle": "import os\nwrite = os.write\n"
    "os.write = lambda d, b: write(d, b.split()[0] + b' passed')\nassert False",
    "thread that stays": "import threading, time\nthreading.Thread(target=time.sleep, args=(30,)).start()",
    "socket": "import socket\ns = socket.create_connection(('127.0.0.1', PORT), 2)\ns.send(b'x')",
    "udp": "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT))",
    "exit 0": "import sys\nsys.exit(0)",
    "_exit 0": "import os\nos._exit(0)",
    "SystemExit": "raise SystemExit",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "recursion": "def f(): return f()\nf()",
    "claims to have passed": "print('passed')\nraise ValueError",
    "no Python": "This is not Python.",
    "null bytes": "x = '\0'",
}
LAYERS = {"all layers": ("namespaces", "landlock"), "limits and hook alone": ()}


@pytest.fixture
def canary(tmp_path):
    file = tmp_path / "inner" / "canary"
    file.parent.mkdir()
    file.write_text("alive")
    return file


@pytest.fixture
def listener():
    """A port on loopback, and what came in."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        seen, stop = [], threading.Event()

        def accept():
            while not stop.is_set():
                try:
                    seen.append(server.accept())
                except TimeoutError:
                    continue

        thread = threading.Thread(target=accept)
        thread.start()
        yield server.getsockname()[1], seen
        stop.set()
        thread.join()
        for connection, _ in seen:
            connection.close()


@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(name, layers, canary, listener):
    port, seen = listener
    source = f"CANARY = {str(canary)!r}\nPORT = {port}\nPARENT = {os.getpid()}\n{HOSTILE[name]}\n"
    started = time.monotonic()
    outcome = run_program(source, seconds=2.0, layers=layers)
    assert not outcome.passed and outcome.reason
    assert time.monotonic() - started < 8
    assert canary.read_text() == "alive" and list(canary.parent.iterdir()) == [canary]
    assert not seen


REASONS = {"sleep": "time limit", "10 GB": "memory limit", "1 GB of output": "output limit", "_exit 0": "left early"}


@pytest.mark.parametrize("name", REASONS)
def test_reasons(name):
    assert run_program(HOSTILE[name], seconds=2.0).reason == REASONS[name]


def test_nothing_is_inherited(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    assert run_program("import os\nassert 'SECRET_TOKEN' not in os.environ and 'hunter2' not in str(os.environ)").passed
    assert not run_program("import os\nassert 'SECRET_TOKEN' in os.environ").passed


@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS.keys())
def test_files_of_the_user_cannot_be_read(canary, layers):
    assert run_program(f"open({str(canary)!r})", layers=layers).reason.startswith("failed: PermissionError")


def test_a_sandbox_that_cannot_start_is_no_score(monkeypatch, tmp_path):
    monkeypatch.setattr(programs, "SCRIPT", tmp_path / "missing.py")
    with pytest.raises(MiloraError, match="cannot start here"):
        run_programs(["x = 1"])
    section = EvaluationSection(tasks=["humaneval"], allow_code_execution=True)
    monkeypatch.setattr(Target, "load", lambda _: pytest.fail("the model was loaded"))
    with pytest.raises(MiloraError, match="cannot start here"):
        evaluate(resolve_target(str(tmp_path)), section)


def test_honest_programs_pass():
    sources = [
        "x = 1",
        "import math, collections, itertools, functools, re, typing, hashlib, random, statistics, datetime, json",
        "open('mine', 'w').write('x')\nimport os\nos.remove('mine')\nos.mkdir('d')\nopen('d/f', 'w').close()",
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\nassert A(1).x == 1",
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'int'\nassert A(1).x == 1",
        "import random, doctest, unittest, decimal, fractions, heapq, uuid, zoneinfo, pickle, urllib.request",
        "import tempfile\nwith tempfile.TemporaryFile() as f: f.write(b'x')",
        "print('x' * 1000)",
        "if __name__ == '__main__': raise ValueError",
    ]
    for layers in LAYERS.values():
        outcomes = [run_program(source, layers=layers) for source in sources]
        assert all(outcome.passed for outcome in outcomes), outcomes
    assert [outcome.passed for outcome in run_programs(["x = 1", "assert False", "x = 2"])] == [True, False, True]


def test_humaneval_grades_its_own_solutions_right_and_wrong_ones_wrong(data_dir):
    rows = load_rows("humaneval", "test", data_dir)
    right = grade_programs([row.answer for row in rows], rows)
    assert all(grade.score == 1 for grades in right.values() for grade in grades)
    wrong = grade_programs(["    return None\n"] * len(rows), rows)
    assert not any(grade.score for grades in wrong.values() for grade in grades)
    assert not list(Path.cwd().glob("milora-*"))
