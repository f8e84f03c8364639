"""Signs of life from work that takes long: a bar in a terminal or a notebook, a line now and then elsewhere.

Lines are for commands, which switch them on (``lines_when_piped``); a script that imports the library is told nothing in a
file. ``TQDM_DISABLE=1`` silences bars, ``HF_SHEAR_NO_PROGRESS=1`` bars and lines.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from .ranks import is_main_process

Item = TypeVar("Item")

SILENCED_BY = "HF_SHEAR_NO_PROGRESS"
WORTH_TELLING = 10.0  # seconds that work takes in all, for a line; and, roughly, for a bar
BETWEEN_LINES = 30.0  # seconds
BAR_DELAY = 2.0  # seconds of work without a bar

_BARS = {
    "datasets": "disable_progress_bars",
    "huggingface_hub.utils": "disable_progress_bars",
    "transformers.utils.logging": "disable_progress_bar",
}
"""Functions that switch a library's bars off, by module."""

_lines = False


def lines_when_piped() -> None:
    """Where stderr is no terminal: a line now and then from now on, in this process, and no bars of other libraries."""
    global _lines
    _lines = True
    if _watched():
        return
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")  # of what is imported later, and of processes that are started
    for name, switch in _BARS.items():
        if name in sys.modules:
            getattr(sys.modules[name], switch)()


def bars_are_seen() -> bool:
    """Whether bars reach somebody: False of a command whose stderr is no terminal."""
    return _watched() or not _lines


def _watched() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def tracked(items: Iterable[Item], what: str, total: int | None = None, unit: str = "batch") -> Iterator[Item]:
    """``items``, with a sign of how far their use is.

    Args:
        what: is done with them, to begin a line: "Scores of layers".
        total: number of items, if they have no length.
        unit: one of them.
    """
    if total is None:
        total = len(items) if isinstance(items, Sized) else None
    if os.environ.get(SILENCED_BY) or not is_main_process():
        yield from items
    elif _watched():
        from tqdm.auto import tqdm

        yield from tqdm(items, what, total, unit=unit, leave=False, delay=BAR_DELAY, dynamic_ncols=True)
    elif _lines:
        yield from _with_lines(items, what, total, unit)
    else:
        yield from items


def _with_lines(items: Iterable[Item], what: str, total: int | None, unit: str) -> Iterator[Item]:
    """A line after the first item, which says how long all will take, and one each half minute after it."""
    start = told = None
    for done, item in enumerate(items):
        now = time.perf_counter()
        start = now if start is None else start  # what comes before the first item is told by whoever does it
        seconds = now - start
        left = None if total is None or not done else seconds / done * (total - done)
        worth = seconds + (left or 0.0) >= WORTH_TELLING
        if done and worth and (told is None or now - told >= BETWEEN_LINES):
            told = now
            of_all = "" if total is None else f" of {total}"
            rest = "" if left is None else f", about {duration_text(left)} left"
            print(f"{what}: {done}{of_all} {plural(unit)}{rest}", file=sys.stderr, flush=True)
        yield item


def plural(unit: str) -> str:
    """Of the units that are counted here."""
    return f"{unit}es" if unit.endswith(("ch", "s")) else f"{unit}s"


_SECONDS_OF = ((1.0, 90, "s"), (60.0, 90, "min"), (3600.0, 48, "h"), (86_400.0, None, "days"))


def duration_text(seconds: float) -> str:
    """Such as "40 s", "12 min", "30 h" or "4 days"."""
    for length, limit, unit in _SECONDS_OF:
        if limit is None or seconds < limit * length:
            return f"{max(round(seconds / length), 1)} {unit}"
    raise AssertionError("the last unit has no limit")
