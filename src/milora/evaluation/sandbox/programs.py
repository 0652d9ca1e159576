"""Programs that a model wrote, each run in a confined process of its own."""

import json
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from milora.evaluation.sandbox.confinement import landlock_version
from milora.method.errors import MiloraError

SCRIPT = Path(__file__).with_name("confinement.py")
FILE_SIZE = 4 * 2**20
NAMESPACES = ("unshare", "--user", "--map-root-user", "--net", "--ipc", "--pid", "--fork", "--kill-child")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether a program ran to its end, and if not, why."""

    passed: bool
    reason: str = ""


def run_programs(sources: list[str]) -> list[Outcome]:
    """Run programs, as many at a time as there are cores; their outcomes in order.

    Raises:
        MiloraError: the sandbox itself cannot start, which is not a score of a model.
    """
    check_sandbox()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(run_program, sources))


def check_sandbox() -> None:
    """Raise unless an empty program runs to its end."""
    trial = run_program("")
    if not trial.passed:
        raise MiloraError(
            f"the sandbox for a model's programs cannot start here ({describe_confinement()}): {trial.reason}",
            "allow more memory, processes and open files (ulimit -a), or leave tasks that run programs out",
        )


def run_program(
    source: str,
    *,
    seconds: float = 10.0,
    memory: int = 2**31,
    output: int = 2**20,
    layers: tuple[str, ...] = ("namespaces", "landlock"),
) -> Outcome:
    """Run a Python program in a process without this one's environment, and say whether it ran to its very end.

    Limits: `seconds` of wall-clock time, bytes of `memory` and of `output`. `layers` are used where the system offers
    them: namespaces (no network, no other processes, nothing outlives it) and Landlock (nothing outside its own folder
    is written, nothing of the user's read). Limits and an audit hook in Python are always on.

    It stops accidents and crude attacks. A program that knows how it is run can report for itself through its caller's
    frame, reach into the hook by way of a refusal's traceback, and get past it by breaking Python's own memory.
    """
    token = secrets.token_hex(16)
    with TemporaryDirectory(prefix="milora-", ignore_cleanup_errors=True) as name:
        folder = str(Path(name).resolve())
        report, child_end = os.pipe()
        order = {
            "token": token,
            "report": child_end,
            "folder": folder,
            "seconds": int(seconds) + 1,
            "memory": memory,
            "file_size": FILE_SIZE,
            "landlock": "landlock" in layers,
        }
        process = subprocess.Popen(
            [*(NAMESPACES if "namespaces" in layers and _has_namespaces() else ()), sys.executable, "-ISB", SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={"PATH": "/usr/bin:/bin", "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8"},
            start_new_session=True,
            pass_fds=(child_end,),
        )
        os.close(child_end)
        try:
            return _watch(process, report, f"{json.dumps(order)}\n{source}", token, seconds, output)
        finally:
            os.close(report)
            _kill(process)


def describe_confinement() -> str:
    """One line that names the layers which this system offers."""
    layers = ["limits", "audit hook"]
    if _has_namespaces():
        layers.append("namespaces (user, net, ipc, pid)")
    if landlock_version():
        layers.append(f"landlock {landlock_version()}")
    return ", ".join(layers)


@cache
def _has_namespaces() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*NAMESPACES, "true"], capture_output=True, check=False).returncode == 0


def _watch(
    process: "subprocess.Popen[bytes]", report: int, order: str, token: str, seconds: float, output: int
) -> Outcome:
    assert process.stdin and process.stdout
    deadline = time.monotonic() + seconds
    try:
        with process.stdin as stdin:
            stdin.write(order.encode("utf-8", "replace"))
    except BrokenPipeError:
        return Outcome(False, "ended before it started")
    received, printed = b"", 0
    with selectors.DefaultSelector() as selector:
        for descriptor in (report, process.stdout.fileno()):
            selector.register(descriptor, selectors.EVENT_READ)
        ended = False
        while not ended:
            if time.monotonic() > deadline:
                return Outcome(False, "time limit")
            # Once more after its end: what it wrote last may still be in the pipe.
            ended = process.poll() is not None
            for key, _ in selector.select(0.0 if ended else 0.02):
                data = os.read(key.fd, 2**16)
                if not data:
                    selector.unregister(key.fd)
                elif key.fd == report:
                    received = (received + data)[:1000]
                else:
                    printed += len(data)
            if printed > output:
                return Outcome(False, "output limit")
    said, _, verdict = received.decode("utf-8", "replace").partition(" ")
    if said != token:
        return Outcome(False, f"killed by signal {-process.returncode}" if process.returncode < 0 else "left early")
    return Outcome(verdict == "passed", "" if verdict == "passed" else verdict)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End the program and, with it, its session and its namespace."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout:
        process.stdout.close()
