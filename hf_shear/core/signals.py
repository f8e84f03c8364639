"""SIGTERM (a scheduler's preemption) and SIGINT (Ctrl-C): a program ends in order, with exit code 143 or 130.

Training notes the signal and ends at its next step (``noted_signals``); everything else ends at once
(``raised_signals``).
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StoppedBySignal(SystemExit):
    """A signal asked for the end. A script that does not catch it ends with exit code 128 + the signal's number.

    Args:
        signum: number of the signal.
        done: what was saved, as an end of the sentence "Stopped by SIGTERM".
        advice: how to go on.
    """

    def __init__(self, signum: int, done: str = "", advice: str = ""):
        super().__init__(128 + signum)
        self.signum, self.done, self.advice = signum, done, advice

    def __str__(self) -> str:
        return " ".join(filter(None, (f"Stopped by {signal.Signals(self.signum).name}{self.done}.", self.advice)))


class StoppedByKeyboard(StoppedBySignal, KeyboardInterrupt):
    """The same for SIGINT: who catches ``KeyboardInterrupt`` catches it."""


def stop_of(signum: int, done: str = "", advice: str = "") -> StoppedBySignal:
    """The exception of a signal."""
    return (StoppedByKeyboard if signum == signal.SIGINT else StoppedBySignal)(signum, done, advice)


@contextmanager
def raised_signals() -> Iterator[None]:
    """Within, SIGTERM and SIGINT raise :class:`StoppedBySignal`."""

    def stop(signum: int) -> None:
        raise stop_of(signum)

    with _handled(stop):
        yield


@dataclass
class Noted:
    """The first signal that came, or None, and whether whoever reads this has ended for it."""

    signum: int | None = None
    is_answered: bool = False


@contextmanager
def noted_signals() -> Iterator[Noted]:
    """Within, the first SIGTERM or SIGINT is noted, and said; a second one is handled as before.

    Under torchrun later ones change nothing: its agent passes on what a scheduler may have sent to every process, and
    ends who is late by SIGKILL. What came too late to be answered is handled as before at the end.
    """
    noted, elastic = Noted(), "TORCHELASTIC_RUN_ID" in os.environ

    def note(signum: int) -> None:
        if not elastic:
            restore()
        if noted.signum is None:
            noted.signum = signum
            if os.environ.get("RANK", "0") == "0":  # not by print: that may be what the signal interrupted
                os.write(2, f"\n{signal.Signals(signum).name}: training stops at the end of this step.\n".encode())

    with _handled(note) as restore:
        yield noted
    if noted.signum is not None and not noted.is_answered:
        signal.raise_signal(noted.signum)


@contextmanager
def _handled(handle: Callable[[int], None]) -> Iterator[Callable[[], None]]:
    """Within, and in the main thread, which alone may set handlers; a signal that is ignored stays ignored."""
    process, before = os.getpid(), {}

    def handler(signum, frame):
        if os.getpid() == process:
            handle(signum)
        else:  # a child that was forked meanwhile
            signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
            os.kill(os.getpid(), signum)

    def restore() -> None:
        while before:
            signal.signal(*before.popitem())

    if threading.current_thread() is threading.main_thread():
        for signum in _SIGNALS:
            if signal.getsignal(signum) not in (signal.SIG_IGN, None):
                before[signum] = signal.signal(signum, handler)
    try:
        yield restore
    finally:
        restore()


def leave_signals_to_parent(worker: int = 0) -> None:
    """Start of a worker that a step may still need: it ignores SIGINT, and the first SIGTERM.

    Terminals and schedulers signal all processes of a group. The one that started the worker decides when it ends; a
    second SIGTERM, by which Python ends a worker that hangs, still does.

    Args:
        worker: its number, for ``worker_init_fn`` of a data loader.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda signum, frame: signal.signal(signum, signal.SIG_DFL))
