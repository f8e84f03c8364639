"""Two processes never write to one folder, and a holder that was killed holds nothing."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import hf_shear
from hf_shear.cli.main import main
from hf_shear.core import UsageError, lock_folder, locked_result, run_lock
from hf_shear.runs import RunFolder

# The lock alone, without the package that would import torch; it may fork a child that outlives it.
HOLDER = """
import os, sys, time, types
for name in ("hf_shear", "hf_shear.core"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [os.path.join(sys.argv[1], *name.split(".")[1:])]
from hf_shear.core.run_lock import lock_folder, sign
lock = lock_folder(sys.argv[2])
sign(lock)
if "fork" not in sys.argv or not os.fork():
    print(os.getpid(), flush=True)
time.sleep(60)
"""


class Holder:
    """Another process that holds a folder's lock."""

    def __init__(self, folder: Path, *words: str):
        command = [sys.executable, "-c", HOLDER, str(Path(hf_shear.__file__).parent), str(folder), *words]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.last = int(self.process.stdout.readline())  # the process itself, or its child

    def kill(self) -> None:
        """SIGKILL, without a chance to clean up."""
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def holder(tmp_path):
    holder = Holder(tmp_path / "run")
    yield holder
    holder.kill()


def test_a_folder_that_another_process_writes_to_is_refused_by_name(holder, tmp_path):
    folder = tmp_path / "run"
    host = os.uname().nodename
    (folder / "stages.json").write_text(json.dumps({"settings": {}, "mask_learning": {}}))
    expected = f"`output_dir` '{folder}' is in use: process {holder.process.pid} on host {host} is writing to it. Wait"
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(UsageError) as caught:
            RunFolder(folder, **options)
        assert str(caught.value).startswith(expected)
    assert json.loads((folder / "stages.json").read_text()) == {"settings": {}, "mask_learning": {}}
    holder.kill()
    assert RunFolder(folder, resume=True).records["mask_learning"] == {}


def test_the_kernel_frees_the_lock_of_a_killed_process_though_its_child_lives(tmp_path):
    holder = Holder(tmp_path, "fork")
    with pytest.raises(UsageError, match="is in use"):
        lock_folder(tmp_path)
    holder.kill()
    try:
        os.kill(holder.last, 0)  # lives
        assert lock_folder(tmp_path).is_locked
    finally:
        os.kill(holder.last, signal.SIGKILL)


def is_free(folder: Path) -> bool:
    """Whether another handle gets the kernel's lock."""
    with (folder / run_lock.LOCK_NAME).open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_one_process_may_hold_a_folder_twice_and_drops_it_with_the_last_run(tmp_path):
    first, second = RunFolder(tmp_path), RunFolder(tmp_path / ".." / tmp_path.name)
    assert not is_free(tmp_path)
    del first
    assert not is_free(tmp_path)
    del second
    assert is_free(tmp_path)


def test_overwriting_keeps_the_lock_and_nothing_else(tmp_path):
    RunFolder(tmp_path).stage("mask_learning", dict)
    (tmp_path / "pruned").mkdir()
    (tmp_path / "results.json").write_text("{}")
    lock = tmp_path / run_lock.LOCK_NAME
    inode = lock.stat().st_ino
    other = RunFolder(tmp_path, overwrite=True)
    other.stage("source", dict)
    assert sorted(path.name for path in tmp_path.iterdir()) == [lock.name, "stages.json"]
    assert lock.stat().st_ino == inode and not is_free(tmp_path)


def test_a_refused_run_holds_nothing(tmp_path):
    RunFolder(tmp_path).stage("mask_learning", dict)
    with pytest.raises(UsageError, match="already holds a run"):
        RunFolder(tmp_path)
    assert is_free(tmp_path)


def test_a_refused_run_changes_no_file(tmp_path):
    RunFolder(tmp_path).stage("mask_learning", dict)
    (tmp_path / run_lock.LOCK_NAME).write_text("process 1 on host elsewhere")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    with pytest.raises(UsageError, match="already holds a run"):
        RunFolder(tmp_path)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()} == before


def test_a_lock_that_was_left_or_copied_blocks_nothing(tmp_path):
    (tmp_path / run_lock.LOCK_NAME).write_text("process 1 on host elsewhere")
    assert RunFolder(tmp_path).path == tmp_path


def test_two_processes_never_get_one_number(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = Path.mkdir
    taken = []

    def mkdir(path, *args, **kwargs):
        if path.name == "001" and not taken:  # another process was faster
            taken.append(path)
            made(path)
        made(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert RunFolder(None).path == Path("runs/002") and taken


def test_a_result_is_made_by_one_process_and_leaves_no_lock(tmp_path, capsys):
    made = tmp_path / "new" / "out"
    lock = made.with_name(f".out{run_lock.LOCK_NAME}")
    words = ["prune", "nothing", "--output_dir", str(made), "--data_dir", "text", "--intermediate_size", "8"]
    with pytest.raises(OSError), locked_result(made):
        assert lock.is_file()
        raise OSError
    assert list(tmp_path.iterdir()) == []  # nothing was made
    lock.parent.mkdir()
    with lock.open("w") as other:
        other.write("process 1 on host elsewhere")
        other.flush()
        fcntl.flock(other, fcntl.LOCK_EX)
        assert main(words) == 2
        assert f"`output_dir` '{made}' is in use: process 1 on host elsewhere is writing" in capsys.readouterr().err
    with locked_result(made):
        made.mkdir()
    assert list(made.parent.iterdir()) == [made]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_can_not_be_written_to_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="cannot be written to: Permission denied. Name a folder"):
        lock_folder(tmp_path / "run")


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "run", tmp_path / "file"):
        with pytest.raises(UsageError, match="cannot be written to: (Not a directory|File exists). Name a folder"):
            lock_folder(folder)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_flock_is_refused(tmp_path, monkeypatch, number):
    def flock(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UsageError, match=rf"can not be locked \({os.strerror(number)}\): its file system has no flock"):
        lock_folder(tmp_path)
