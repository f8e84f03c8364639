"""Only files that lie in the folder are read and published: no link, pipe or device.

A symbolic link is refused, wherever it leads: a folder that was received may point it at anything, and what it shows can
change between the look at it and the upload. A hard link can not be told from a file.
"""

from __future__ import annotations

import stat
from pathlib import Path

from ..core import UsageError


def plain_file(path: Path) -> bool:
    """Whether there is a file. Pipes, devices and folders are none.

    Raises:
        UsageError: it is a symbolic link.
    """
    try:
        mode = path.lstat().st_mode
    except OSError:
        return False
    if stat.S_ISLNK(mode):
        raise UsageError(
            f"{str(path)!r} is a symbolic link, and only files that lie in the folder are published. Replace it with a copy"
            " of what it leads to, or remove it."
        )
    return stat.S_ISREG(mode)
