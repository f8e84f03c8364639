"""Files that a command is asked to write: checked before the work whose outcome they get."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from .errors import UsageError


def check_parents(argument: str, path: str | os.PathLike) -> None:
    """Raise UsageError where a file stands in place of a folder that a path lies in."""
    blocked = next((parent for parent in Path(path).parents if parent.exists() and not parent.is_dir()), None)
    if blocked is not None:
        raise UsageError(
            f"`{argument}` must lie in a folder, but of {str(path)!r} {str(blocked)!r} is a file. Name another place."
        )


def check_output_file(argument: str, path: str | os.PathLike, read: Iterable[str | os.PathLike] = ()) -> None:
    """Check that a file can stand at a path, and that it replaces nothing that the command reads.

    Args:
        argument: that names it, for messages.
        path: of the file; neither it nor its folder need exist.
        read: files that the command reads.

    Raises:
        UsageError: a folder stands there, a file stands where its folder would, or it is one of those that are read.
    """
    path = Path(path)
    if path.is_dir():
        raise UsageError(f"`{argument}` must be a file, but {str(path)!r} is a folder. Name a file in it.")
    check_parents(argument, path)
    for other in map(Path, read):
        if path.exists() and other.exists() and path.samefile(other):
            raise UsageError(f"`{argument}` {str(path)!r} would replace a file that is read for it. Name another file.")
