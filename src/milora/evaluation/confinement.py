"""Run as a script: confine this process as far as the system allows, then run the program that comes on stdin.

Standard library only, and nothing of milora: it is started with `python -I -S`. What it is told comes as one JSON line:
the folder, the limits, which layers to use, a descriptor to report to and the token that a report starts with.
"""

import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Landlock (linux/landlock.h): the system calls, and the file rights that each version of it adds.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
READ = 1 << 2 | 1 << 3
EXECUTE = 1
RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}

FORBIDDEN = (
    *("subprocess.", "socket.", "ctypes.", "pty.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn"),
    *("os.kill", "os.symlink", "os.link", "os.chown", "os.setxattr", "signal.pthread_kill", "gc.get_"),
)
CHANGES_FILES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate", "os.utime", "os.chdir")
UNIMPORTABLE = {"_posixsubprocess", "ctypes", "_ctypes"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def limit(seconds: int, memory: int, file_size: int) -> None:
    """Limit time, memory and files; processes too, which binds whoever is not root."""
    for name, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, file_size),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(name, (value, value))


def landlock_version() -> int:
    """The kernel's Landlock version, 0 where there is none."""
    import ctypes

    version: int = ctypes.CDLL(None).syscall(CREATE_RULESET, None, 0, 1)
    return max(0, version)


def apply_landlock(folder: str) -> None:
    """From now on: write only inside the folder, read only there and where Python lies, execute and connect nothing."""
    import ctypes

    version = landlock_version()
    if not version:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    rights = sum(bits for since, bits in RIGHTS.items() if since <= version)
    # File rights; from version 4 on the network's (bind, connect); from 6 on signals and abstract sockets.
    handled = (ctypes.c_uint64 * 3)(rights, 3, 3)
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = libc.syscall(CREATE_RULESET, handled, size, 0)

    class PathBeneath(ctypes.Structure):
        _pack_ = 1
        _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]

    libraries = {sys.base_prefix, *(path for path in sys.path if path), "/usr/lib", "/lib", "/lib64"}
    for path, allowed in [(folder, rights & ~EXECUTE), *((path, rights & READ) for path in libraries)]:
        if Path(path).is_dir():
            descriptor = os.open(path, os.O_PATH)
            libc.syscall(ADD_RULE, ruleset, 1, ctypes.byref(PathBeneath(allowed, descriptor)), 0)
            os.close(descriptor)
    libc.prctl(38, 1, 0, 0, 0)  # no new privileges, without which the next call is refused
    if libc.syscall(RESTRICT_SELF, ruleset, 0):
        raise OSError(ctypes.get_errno(), "landlock_restrict_self")
    os.close(ruleset)


def watch(folder: str) -> None:
    """Refuse, in Python, new processes, sockets and changes outside the folder; a hook cannot be taken off again.

    It calls nothing that a program could replace: only operators and methods of built-in types.
    """
    forbidden, changes, unimportable, writing = FORBIDDEN, CHANGES_FILES, UNIMPORTABLE, WRITING
    inside, name_of, bytes_, str_ = folder + "/", isinstance, bytes, str

    def is_outside(path: Any) -> bool:
        if name_of(path, bytes_):
            path = path.decode("utf-8", "surrogateescape")
        if not name_of(path, str_):
            return True
        return ".." in path.split("/") or (path[:1] == "/" and not (path + "/").startswith(inside))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(forbidden) or (event == "import" and arguments[0] in unimportable):
            raise PermissionError(event)
        if event == "open" and not name_of(arguments[0], int):
            path, mode, flags = arguments
            if (flags & writing or (mode and not {*mode}.isdisjoint("wax+"))) and is_outside(path):
                raise PermissionError(event)
        elif event in changes:
            # Relative to another directory's descriptor is outside; -1 stands for none.
            numbers = [part for part in arguments if name_of(part, int)]
            paths = [part for part in arguments if name_of(part, (str_, bytes_))]
            relative = event != "os.chmod" and event != "os.mkdir" and any(part != -1 for part in numbers)
            if not paths or relative or any(is_outside(path) for path in paths):
                raise PermissionError(event)

    sys.addaudithook(hook)


def run(source: str, report: Callable[[str], None]) -> None:
    """Run the program to its very end; leaving early, by whatever exception, is a failure."""
    try:
        exec(compile(source, "program.py", "exec"), {"__name__": "program"})
    except MemoryError:
        report("memory limit")
    except BaseException as error:  # noqa: BLE001  the program may raise anything, SystemExit and its own included
        report(f"failed: {type(error).__name__} {str(error)[:150]}".replace("\n", " "))
    else:
        report("passed")


def main() -> None:
    order = json.loads(sys.stdin.readline())
    source = sys.stdin.read()
    sys.stdin.close()
    token, descriptor, folder = order["token"], order["report"], order["folder"]
    if order["landlock"]:
        apply_landlock(folder)
    limit(order["seconds"], order["memory"], order["file_size"])
    for name in [name for name in sys.modules if "ctypes" in name]:
        del sys.modules[name]
    watch(folder)
    del order
    run(source, lambda verdict: (os.write(descriptor, f"{token} {verdict}".encode()), None)[1])


if __name__ == "__main__":
    main()
