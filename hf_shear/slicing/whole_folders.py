"""Folders that are written whole or not at all, whatever stops the process that writes them.

A folder is written as NAME.unfinished beside its place, reaches the disk, and is then renamed. One that stood there is
NAME.replaced for the moment between two renames; a process that dies in it leaves that, and the next one that writes to
NAME puts it back first.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from ..core import FailedError

UNFINISHED, REPLACED = ".unfinished", ".replaced"


def replace_folder(output_dir: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` make a folder beside ``output_dir``, and put it in its place once it is complete.

    Raises:
        FailedError: it could not be written. Nothing of it is left, and what stood there before still does.
    """
    try:
        unfinished = begin_folder(output_dir)
        try:
            write(unfinished)
            put_in_place(unfinished, output_dir)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)  # after an error; else it has gone to its place
    except (OSError, SafetensorError) as error:
        before = "What was there before is as it was." if output_dir.exists() else "Nothing of it is left."
        raise FailedError(
            f"{str(output_dir)!r} could not be written: {error}. {before} Mend what stopped it (room on the disk, rights)"
            " and run the same again; a run goes on from its last checkpoint with `--resume`."
        ) from error


def begin_folder(output_dir: Path) -> Path:
    """Where to write what is to become ``output_dir``; leftovers of a process that died meanwhile are cleared."""
    unfinished, replaced = _beside(output_dir, UNFINISHED), _beside(output_dir, REPLACED)
    if unfinished.exists():
        shutil.rmtree(unfinished)
    if replaced.exists() and not output_dir.exists():
        os.replace(replaced, output_dir)
    return unfinished


def put_in_place(unfinished: Path, output_dir: Path) -> None:
    """Rename a complete folder to ``output_dir``, in place of what is there."""
    _open_to_readers(unfinished)
    _flush(unfinished)
    replaced = _beside(output_dir, REPLACED)
    if output_dir.exists():
        if replaced.exists():
            shutil.rmtree(replaced)
        os.replace(output_dir, replaced)
    try:
        os.replace(unfinished, output_dir)
    except OSError:
        if replaced.exists():
            os.replace(replaced, output_dir)
        raise
    if replaced.exists():
        os.replace(replaced, unfinished)  # half removed, it must not be taken for one to put back
        shutil.rmtree(unfinished)


def _beside(output_dir: Path, ending: str) -> Path:
    return output_dir.with_name(output_dir.name + ending)


def _open_to_readers(folder: Path) -> None:
    """Let who may read the folder read its files: safetensors 0.8 writes weights that only their owner may read."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(path.stat().st_mode | (folder.stat().st_mode & 0o666))


def _flush(folder: Path) -> None:
    """Let files reach the disk before they get their name: a rename may get there first."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
