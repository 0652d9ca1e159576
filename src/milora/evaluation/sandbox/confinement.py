"""Run as a script: confine this process as far as the system allows, then run the program that comes on stdin.

Standard library only, and nothing of milora: it is started with `python -I -S`. What it is told comes as one JSON line:
the folder, the limits, which layers to use, a descriptor to report to and the token that a report starts with.
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

# Landlock (linux/landlock.h): the system calls, and the file rights that each version of it adds.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
READ = 1 << 2 | 1 << 3
EXECUTE = 1
RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}

FORBIDDEN = (
    *("subprocess.", "socket.", "ctypes.", "pty.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn"),
    *("os.kill", "os.symlink", "os.link", "os.chown", "os.setxattr", "signal.pthread_kill", "gc.get_"),
    *("os.removexattr", "os.lockf", "resource.", "sqlite3."),
)
# Of each event's arguments: how many paths come first, and where the descriptors of folders begin.
CHANGES_FILES = {
    **{"os.remove": (1, 1), "os.rmdir": (1, 1), "os.rename": (2, 2), "os.mkdir": (1, 2), "os.chmod": (1, 2)},
    **{"os.utime": (1, 3), "os.truncate": (1, 2), "os.chdir": (1, 1)},
}
# They start processes, leave this interpreter and its hook, or open files without an event.
UNIMPORTABLE = {
    *("_posixsubprocess", "ctypes", "_ctypes", "_xxsubinterpreters", "_interpreters", "_testcapi", "_posixshmem"),
    *("_multiprocessing", "readline", "_gdbm", "_dbm"),
}
UNAUDITED = (
    *("mknod", "mkfifo", "chroot", "setns", "unshare", "pidfd_open", "pidfd_send_signal", "setpriority"),
    *("sched_setaffinity", "sched_setscheduler", "sched_setparam"),
)
MAX_FILES = 64  # opened for writing, or folders made: with the limit on a file's size, one on all of them
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
        hard = resource.getrlimit(name)[1]  # negative: none
        resource.setrlimit(name, (min(value, hard) if hard >= 0 else value,) * 2)


def libraries() -> set[str]:
    """The folders that Python and its libraries load files from."""
    named = {sys.base_prefix, *(path for path in sys.path if path), "/usr/lib", "/lib", "/lib64"}
    return {*named, *(os.path.realpath(path) for path in named)}


def landlock_version() -> int:
    """The kernel's Landlock version, 0 if it has none."""
    if sys.platform != "linux":
        return 0  # the number is another call's there
    import ctypes

    version: int = ctypes.CDLL(None).syscall(CREATE_RULESET, None, 0, 1)
    return max(0, version)


def apply_landlock(folder: str) -> None:
    """From now on write only in the folder, read only there and from Python's folders; execute and connect nothing."""
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
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), "landlock_create_ruleset")

    class PathBeneath(ctypes.Structure):
        _pack_ = 1
        _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]

    for path, allowed in [(folder, rights & ~EXECUTE), *((path, rights & READ) for path in libraries())]:
        if Path(path).is_dir():
            descriptor = os.open(path, os.O_PATH)
            if libc.syscall(ADD_RULE, ruleset, 1, ctypes.byref(PathBeneath(allowed, descriptor)), 0):
                raise OSError(ctypes.get_errno(), f"landlock_add_rule {path}")
            os.close(descriptor)
    libc.prctl(38, 1, 0, 0, 0)  # no new privileges, without which the next call is refused
    if libc.syscall(RESTRICT_SELF, ruleset, 0):
        raise OSError(ctypes.get_errno(), "landlock_restrict_self")
    os.close(ruleset)


def disarm() -> None:
    """Take away the functions that act on other processes or make files and raise no audit event."""
    for module in (os, signal, sys.modules["posix"], sys.modules["_signal"]):
        for name in UNAUDITED:
            function = vars(module).pop(name, None)
            for group in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
                group.discard(function)


def watch(folder: str) -> None:
    """Refuse, in Python, new processes, sockets, changes outside the folder and reading what Landlock would not let.

    A hook cannot be taken off again. It uses nothing that a program could replace: no global names, and methods only
    of objects whose type is exactly a built-in one, for a subclass of str may answer what it likes.
    """
    forbidden, changes, unimportable, writing = FORBIDDEN, CHANGES_FILES, UNIMPORTABLE, WRITING
    type_, str_, bytes_, set_, refusal, no_module = type, str, bytes, set, PermissionError, ImportError
    inside, left = (folder + "/",), MAX_FILES
    readable = (*inside, *(path.rstrip("/") + "/" for path in libraries()), "/dev/null/", "/dev/urandom/")

    def is_within(path: Any, roots: tuple[str, ...]) -> bool:
        if type_(path) is bytes_:
            path = path.decode("utf-8", "surrogateescape")
        if type_(path) is not str_ or ".." in path.split("/"):
            return False
        within: bool = path[:1] != "/" or (path + "/").startswith(roots)
        return within

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event == "import":
            # A loader takes the module to make from the last part of whatever name it is given.
            if type_(arguments[0]) is not str_ or arguments[0].rpartition(".")[2] in unimportable:
                raise no_module(event)
        elif event == "open":
            path, mode, flags = arguments
            writes = flags & writing or (mode and not set_(mode).isdisjoint("wax+"))
            # os.open (no mode) may count a relative path from any folder, and the event does not say which.
            relative = writes and not mode and (type_(path) is not str_ or path[:1] != "/")
            if relative or not is_within(path, inside if writes else readable):
                raise refusal(event)
            left -= 1 if writes else 0
        elif event in changes:
            paths, folders = changes[event]
            for path in arguments[:paths]:
                if not is_within(path, inside):
                    raise refusal(event)
            for descriptor in arguments[folders:]:
                if descriptor != -1:
                    raise refusal(event)
            left -= 1 if event == "os.mkdir" else 0
        elif event.startswith(forbidden):
            raise refusal(event)
        if left < 0:
            raise refusal("too many files")

    sys.addaudithook(hook)


def run(source: str, report: Callable[[str], None]) -> None:
    """Run the program to its very end; leaving early, by whatever exception, is a failure."""
    # A module that can be found by its name: dataclasses look there for what annotations mean.
    module = sys.modules["program"] = ModuleType("program")
    try:
        exec(compile(source, "program.py", "exec", dont_inherit=True), module.__dict__)
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
    disarm()
    watch(folder)
    del order
    write = os.write  # the program may put a function of its own in its place, and would be handed the token
    run(source, lambda verdict: (write(descriptor, f"{token} {verdict}".encode("utf-8", "replace")), None)[1])


if __name__ == "__main__":
    main()
