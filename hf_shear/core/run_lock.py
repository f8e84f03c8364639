"""One run, one folder: a lock of the kernel on the folder, which the death of its holder frees."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import UsageError
from .ranks import by_main_process

LOCK_NAME = "_run.lock"
"""File that is locked, in the folder itself: what lies around the folder may not be ours to write to. It names its
last holder, and stays when the lock is gone: only the kernel says whether it is held. What begins with an underscore is
not uploaded by transformers' ``push_to_hub=True``."""

_NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


def lock_folder(folder: str | os.PathLike) -> FileLock:
    """Make ``folder`` this process's to write to, until what is returned is dropped or the process ends.

    A process may lock a folder that it holds already, such as for a run and for the training of one of its stages.

    Raises:
        UsageError: another process holds it, it cannot be written to, or its file system has no flock.
    """
    return _lock(Path(folder).resolve() / LOCK_NAME, folder)


def _lock(path: Path, folder: str | os.PathLike) -> FileLock:
    lock = FileLock(path, timeout=0, thread_local=False, is_singleton=True, fallback_to_soft=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UsageError(
            f"`output_dir` {str(folder)!r} is in use: {path.read_text(encoding='utf-8') or 'another process'} is writing"
            " to it. Wait until that has ended, end it, or choose another folder."
        ) from None
    except OSError as error:
        if error.errno in _NO_FLOCK:
            raise UsageError(
                f"`output_dir` {str(folder)!r} can not be locked ({error.strerror}): its file system has no flock, so that"
                " two runs could write to it at once. Name a folder on another file system, or mount this one with flock."
            ) from error
        raise UsageError(
            f"`output_dir` {str(folder)!r} cannot be written to: {error.strerror}. Name a folder on a disk with room that"
            " you may write to."
        ) from error
    return lock


def sign(lock: FileLock) -> None:
    """Name this process as the holder; once all is checked, so that a refusal has changed no file."""
    Path(lock.lock_file).write_text(f"process {os.getpid()} on host {socket.gethostname()}", encoding="utf-8")


@contextmanager
def locked_run(folder: str | os.PathLike) -> Iterator[None]:
    """Within, ``lock_folder`` once for all processes of a launch: the main one holds it, a refusal is raised in all."""
    held = _hold(lambda: lock_folder(folder))
    try:
        yield
    finally:
        for lock in held:
            lock.release()


@contextmanager
def locked_result(folder: str | os.PathLike) -> Iterator[None]:
    """Within, no other process makes ``folder``, which is not there yet. The lock lies beside it, and goes at the end.

    Once for all processes of a launch, as ``locked_run``.
    """
    path = Path(folder).resolve()
    path = path.with_name(f".{path.name}{LOCK_NAME}")
    made = [parent for parent in path.parents if not parent.exists()]
    held = _hold(lambda: _lock(path, folder))
    try:
        yield
    finally:
        for lock in held:
            path.unlink()  # before it is free: who waits for it sees that it is gone
            lock.release()
            for parent in made:
                with suppress(OSError):  # not empty: something was made
                    parent.rmdir()


def _hold(lock: Callable[[], FileLock]) -> list[FileLock]:
    """Lock and sign in the main process of a launch. A refusal is raised in all; the others hold nothing."""
    held: list[FileLock] = []

    def hold() -> None:
        held.append(lock())
        sign(held[0])

    by_main_process(hold)
    return held


def content_of(folder: str | os.PathLike) -> list[Path]:
    """What lies in a folder besides its lock."""
    return [path for path in Path(folder).iterdir() if path.name != LOCK_NAME]
