"""lm-eval without its prints and hints, and with lines in place of its bars where nobody watches."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import sys
from collections.abc import Iterator
from unittest import mock

from ..core import tracked


@contextlib.contextmanager
def quiet_harness() -> Iterator[None]:
    """Keep lm-eval off stdout, and below errors; without a terminal, lines of a command take the place of its bars.

    lm-eval prints what it is doing to stdout, forces its bars on whatever `TQDM_DISABLE` says, and asks git for a commit
    that nothing here uses, of which git complains on stderr outside of a repository.
    """
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    watched = sys.stderr.isatty()
    try:
        with contextlib.ExitStack() as stack:
            sink = sys.stderr if watched else stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(sink))
            stack.enter_context(mock.patch("lm_eval.evaluator.get_git_commit_hash", return_value=None))
            if not watched:
                stack.enter_context(_no_bars())
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Lines of ``tracked`` in place of bars."""
    from tqdm import tqdm

    start = tqdm.__init__

    def start_disabled(self, *args, **options):
        start(self, *args, **{**options, "disable": True})
        self.lines = tracked(itertools.repeat(None), options.get("desc") or "Tasks", options.get("total"), "request")
        next(self.lines)

    def tell(self, n=1):
        for _ in range(int(n or 0)):
            next(self.lines)

    with mock.patch.object(tqdm, "__init__", start_disabled), mock.patch.object(tqdm, "update", tell):
        yield
