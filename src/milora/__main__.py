"""The process of the command line: its environment, its errors, its exit codes. `python -m milora` starts here too."""

import errno
import logging
import os
import re
import shlex
import signal
import sys
import time
import warnings
from importlib.metadata import requires
from typing import NoReturn

from typer import TyperException

from milora.cli import app
from milora.method.errors import MiloraError, MiloraWarning
from milora.run.allocator import keep_large_blocks
from milora.run.interruption import Interrupted, on_signal


def main() -> None:
    """Run the CLI; an error that the user can fix is two lines on stderr, and exit code 2."""
    if sys.platform == "win32":
        _fail("the commands of milora run on Linux and macOS", "on Windows, run them in WSL")
    _prepare_process()
    try:
        with on_signal(_interrupt, [signal.SIGINT]):
            code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except Interrupted as interruption:
        _leave(128 + interruption.number, f"stopped: {interruption.kept}\nto go on: {_this_command()}")
    except TyperException as error:
        message = error.format_message().replace("Value error, ", "").rstrip(".")  # pydantic's, under typer
        _fail(message, "`milora --help` lists the commands, and `milora COMMAND --help` their options")
    except MiloraError as error:
        _fail(error.message, error.hint)
    except OSError as error:
        _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", _explain_os(error))
    except ImportError as error:
        _fail(" ".join(str(error).split()), _explain_import(error))
    else:
        sys.exit(code if isinstance(code, int) else 0)


def _explain_os(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "get some free disk space, and run the same command again: it resumes; or choose another folder"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "check the permissions, or choose another folder with --runs or -o"
    if isinstance(error, (ConnectionError, TimeoutError)):
        return "check the network, or name local files"
    return "check the path, or choose another folder with --runs or -o"


def _explain_import(error: ImportError) -> str:
    """Which extra of milora has the package, or that it is none of milora's."""
    package = (error.name or "").partition(".")[0].replace("_", "-")
    for requirement in requires("milora") or ():
        found = re.match(r"([\w.-]+).*extra == ['\"](\w+)", requirement)
        if found and found[1].lower() == package.lower() and found[2] not in ("all", "dev"):
            return f"pip install 'milora[{found[2]}]'"
    if isinstance(error, ModuleNotFoundError) and package:
        return f"pip install {package}"
    return "install the package that the message names, in a version that has what is asked for"


def _prepare_process() -> None:
    """Be a good neighbor on a shared machine, and keep other libraries' advice to their developers off the screen."""
    # Read when torch is loaded. Threads that spin while they wait take the cores from other processes, and from the
    # thread that they wait for: see docs/decisions/0003-waiting-threads.md.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_large_blocks()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # read by bars that do not look for a terminal themselves
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|trl|torch)\b")
    warnings.formatwarning = _format_warning
    for library in ("lm_eval", "transformers", "bitsandbytes"):
        logging.getLogger(library).setLevel(logging.ERROR)
    # It prints on stdout, and sets its own level when it is imported: hence a filter.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Return milora's own warnings as a sentence, and others as Python does."""
    if issubclass(category, MiloraWarning):
        return f"warning: {message}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"


def _interrupt(number: int) -> NoReturn:
    raise Interrupted(number, "what is finished is kept")


def _this_command() -> str:
    return "run the same command again" if _is_launched() else f"milora {shlex.join(sys.argv[1:])}"


def _is_launched() -> bool:
    return "LOCAL_RANK" in os.environ


def _fail(message: str, hint: str) -> NoReturn:
    _leave(2, f"error: {message}\nhint: {hint}")


def _leave(code: int, said: str) -> NoReturn:
    if _is_launched() and os.environ["LOCAL_RANK"] != "0":
        # In a launch the first process usually ends the same way and reports it, and the launcher ends this one.
        time.sleep(5)
    print(said, file=sys.stderr, flush=True)
    if not _is_launched():
        sys.exit(code)
    os._exit(code)  # at once: an orderly exit may wait for processes that wait for this one


if __name__ == "__main__":
    main()
