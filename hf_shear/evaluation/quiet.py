"""lm-eval without its bars, prints and hints, where nobody watches."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from unittest import mock


@contextlib.contextmanager
def quiet_harness() -> Iterator[None]:
    """Keep lm-eval off stdout, and below errors; without a terminal, its progress bars as well.

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
    from tqdm import tqdm

    start = tqdm.__init__

    def start_disabled(self, *args, **options):
        start(self, *args, **{**options, "disable": True})

    with mock.patch.object(tqdm, "__init__", start_disabled):
        yield
