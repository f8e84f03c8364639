"""The three kinds of errors that hf_shear raises on purpose. Anything else that is raised is a bug."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


class UsageError(ValueError):
    """A mistake of the user: an argument, a file or a combination of them that can not be used.

    The text names the argument, its value, the rule and the fix, in this order where it can:
    "`mask_share` must be between 0 and 1, but it is 2. Give a share of the steps, such as 0.3."
    The command line shows it as one line, with exit code 2.
    """


@contextmanager
def of_file(path: str | os.PathLike) -> Iterator[None]:
    """Say of mistakes found in the content of a file which file it is."""
    try:
        yield
    except UsageError as error:
        if repr(os.fspath(path)) in str(error):
            raise
        raise UsageError(f"{os.fspath(path)!r}: {error}") from error


class MissingExtraError(UsageError, ImportError):
    """An optional package is needed and not installed; the text names the extra that installs it."""


class FailedError(RuntimeError):
    """Work that was asked for rightly could not be done: training diverged, a disk was full, the Hub did not answer.

    The text says what is left and how to go on. The command line shows it as one line, with exit code 1.
    """
