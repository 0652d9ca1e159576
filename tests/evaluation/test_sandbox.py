"""Hostile programs in the sandbox: stopped, failed, and nothing outside is touched, with all layers and with few.

Every program bounds itself, so that even a sandbox that fails does no harm.
"""

import socket
import threading
import time
from pathlib import Path

import pytest

from milora.evaluation.sandbox import describe_confinement, run_program, run_programs
from milora.evaluation.tasks.humaneval import grade_programs
from milora.run.data import load_rows

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
    source = f"CANARY = {str(canary)!r}\nPORT = {port}\n{HOSTILE[name]}\n"
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


def test_files_of_the_user_cannot_be_read_where_landlock_is(canary):
    if "landlock" not in describe_confinement():
        pytest.skip("this kernel has no Landlock")
    assert run_program(f"open({str(canary)!r})").reason.startswith("failed: PermissionError")


def test_honest_programs_pass():
    sources = [
        "x = 1",
        "import math, collections, itertools, functools, re, typing, hashlib, random, statistics, datetime, json",
        "open('mine', 'w').write('x')\nimport os\nos.remove('mine')\nos.mkdir('d')\nopen('d/f', 'w').close()",
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\nassert A(1).x == 1",
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
    assert all(grade.correct for pair in grade_programs([row["answer"] for row in rows], rows) for grade in pair)
    wrong = grade_programs(["    return None\n"] * len(rows), rows)
    assert not any(grade.correct for pair in wrong for grade in pair)
    assert not list(Path.cwd().glob("milora-*"))
