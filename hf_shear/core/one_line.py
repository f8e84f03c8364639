"""How a command ends: errors that a user can mend are one line, bugs keep their traceback."""

from __future__ import annotations

import os
import select
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from .errors import FailedError, UsageError
from .printable import printable
from .progress import lines_when_piped
from .signals import StoppedBySignal, raised_signals
from .when_imported import when_imported

OK, FAILED, WRONG_USE = 0, 1, 2
NOBODY_READS = 141  # as of SIGPIPE
"""Exit codes: done; something failed on the way; a mistake in the command or what it names."""

DEBUG = "--debug"
"""The flag of every command that shows the traceback of its error as well."""


def run_command_line(program: str, work: Callable[[], object], debug: bool = False) -> int:
    """Run ``work`` and return the exit code.

    A ``UsageError``, and what the libraries that read users' files say of a broken one, is one line and 2. A
    ``FailedError`` or an ``OSError`` (no room, no rights, no network) is one line and 1. SIGTERM is one line and 143,
    SIGINT (Ctrl-C) one line and 130. Output that nobody reads any more, as behind ``head``, ends it with 141 and no word.
    Anything else is a bug: it is raised on. A ``UserWarning`` is shown as its text alone.

    Args:
        program: its name, before the text.
        work: takes nothing; what it returns is not used.
        debug: raise every error, with its traceback, and show where warnings come from.
    """
    try:
        lines_when_piped()
        when_imported("torch", _name_the_accelerator)
        with raised_signals(), nullcontext() if debug else _warnings_as_sentences(program):
            work()
    except StoppedBySignal as stop:
        if debug:
            traceback.print_exc()
        if not _rank():
            print(f"{program}: {stop}", file=sys.stderr)
        return 128 + stop.signum
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return NOBODY_READS
        code = exit_code(error)
        if debug or code is None:
            raise
        kind = "" if isinstance(error, (UsageError, FailedError)) else f"{type(error).__name__}: "
        print(f"{program}: error: {_rank()}{kind}{printable(error)}", file=sys.stderr)
        return code
    return OK


def _nobody_reads() -> bool:
    """Whether stdout leads to a pipe that was closed; what is left to write is dropped then."""
    if not hasattr(select, "poll"):
        return False
    watched, output = select.poll(), sys.stdout.fileno()
    watched.register(output, select.POLLOUT)
    if not any(event & select.POLLERR for _, event in watched.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True


def _name_the_accelerator(torch: Any) -> None:
    """DeepSpeed warns of every machine without an accelerator, unless it is told that there is none."""
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


@contextmanager
def _warnings_as_sentences(program: str) -> Iterator[None]:
    """Within, a ``UserWarning`` is shown as its text, without the place in the source that gave it."""
    usual = warnings.formatwarning

    def sentence(message, category, filename, lineno, line=None) -> str:
        if issubclass(category, UserWarning):
            return f"{program}: warning: {_rank()}{message}\n"
        return usual(message, category, filename, lineno, line)

    warnings.formatwarning = sentence
    try:
        yield
    finally:
        warnings.formatwarning = usual


def exit_code(error: Exception) -> int | None:
    """The exit code of an error that a user can mend; None for a bug."""
    if isinstance(error, UsageError) or isinstance(error, _errors_of_files()):
        return WRONG_USE
    if isinstance(error, (FailedError, OSError)):
        return FAILED
    return None


def _errors_of_files() -> tuple[type[Exception], ...]:
    """What libraries raise of a broken file that a user named. A library that was not imported has raised nothing."""
    found = []
    for module, name in (
        ("json", "JSONDecodeError"),
        ("yaml", "YAMLError"),
        ("safetensors", "SafetensorError"),
        ("huggingface_hub.errors", "StrictDataclassError"),
    ):
        if module in sys.modules:
            found.append(getattr(sys.modules[module], name))
    return tuple(found)


def _rank() -> str:
    """Which process of a launch this is; "" for the first, so that an error that all have reads the same."""
    rank = os.environ.get("RANK", "0")
    return "" if rank == "0" else f"[rank {rank}] "
