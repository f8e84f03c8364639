"""Our files in a checkpoint; which checkpoints are whole, and which can be resumed by this launch."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..core import FailedError, UsageError, read_json_object, write_json_atomically

TRAINER_STATE_NAME = "trainer_state.json"
FILES_NAME = "shear_files.json"
STATE_NAME = "shear_state.json"
_PROCESS_STATE_NAME = "shear_state_{process}.json"
_MEND = "Restore the file, or start anew."
_MARKS = (TRAINER_STATE_NAME, STATE_NAME, FILES_NAME)  # without one of them a checkpoint was not written to its end
_SHARDED = ("DeepSpeed", "FSDP")  # backends whose optimizer state is in parts


class CheckpointError(FailedError):
    """A checkpoint could not be written; what was written before it is intact."""


def write_state(checkpoint: str | Path, state: dict) -> None:
    """Write our part of a checkpoint, which is the same for all processes."""
    write_json_atomically(Path(checkpoint) / STATE_NAME, state)


def read_state(checkpoint: str | Path) -> dict:
    """Read our part of a checkpoint.

    Raises:
        ValueError: the checkpoint was not written by ShearTrainer, or holds what is no number.
    """
    path = Path(checkpoint) / STATE_NAME
    if not path.is_file():
        raise UsageError(
            f"`resume_from_checkpoint` {str(checkpoint)!r} has no {STATE_NAME}: it was not written by ShearTrainer, is"
            " incomplete, or was written with `save_only_model`. Resume from another checkpoint, or start anew."
        )
    return read_json_object(path, fix=_MEND)


def write_process_state(checkpoint: str | Path, process: int, state: dict) -> None:
    """Write what differs by process: where it stands in its streams of data, its sum of losses not logged yet."""
    write_json_atomically(Path(checkpoint) / _PROCESS_STATE_NAME.format(process=process), state)


def read_process_state(checkpoint: str | Path, process: int) -> dict:
    """What ``write_process_state`` wrote for this process; {} for a process that was not there."""
    path = Path(checkpoint) / _PROCESS_STATE_NAME.format(process=process)
    return read_json_object(path, fix=_MEND) if path.is_file() else {}


def note_files(checkpoint: str | Path) -> None:
    """Write which files a checkpoint holds, and their sizes, to ``shear_files.json``.

    All processes must have written theirs. Only ``trainer_state.json``, which marks the end, may come after.
    """
    folder = Path(checkpoint)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    for name in (TRAINER_STATE_NAME, FILES_NAME):
        sizes.pop(name, None)
    write_json_atomically(folder / FILES_NAME, {"bytes": sizes})


def fault_of(checkpoint: str | Path) -> str | None:
    """Why a checkpoint is not whole, in words that name a file; None if it is.

    ``trainer_state.json`` is written last, by the main process, after all processes have written their parts
    (``ShearTrainer`` waits for them) and after ``shear_files.json``, which lists them. Every file must be there, of its
    size, and open as what it is: after a loss of power some file systems leave a file of the right size and of zeros.
    """
    folder = Path(checkpoint)
    for name in _MARKS:
        if not (folder / name).is_file():
            return f"{name} is missing"
        if not _is_json_object(folder / name):
            return f"{name} is cut off or damaged"
    for name, size in json.loads((folder / FILES_NAME).read_text(encoding="utf-8")).get("bytes", {}).items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} of {size:,} bytes"
        if not _opens(path):
            return f"{name} is damaged"
    return None


def is_whole(checkpoint: str | Path) -> bool:
    """Whether a checkpoint was written to its end, and nothing of it is lost."""
    return fault_of(checkpoint) is None


def unmark(checkpoint: str | Path) -> None:
    """Take away what marks a checkpoint as whole, before it is written over."""
    for name in _MARKS:
        (Path(checkpoint) / name).unlink(missing_ok=True)


def last_whole_checkpoint(folder: str | Path, on_skip: Callable[[str], None] = lambda text: None) -> str | None:
    """The last checkpoint of a folder that can be resumed, or None.

    Args:
        folder: that holds ``checkpoint-<step>``.
        on_skip: called with a line of text for each later one that is not whole.

    Raises:
        ValueError: none is whole, but one was once: to begin again, which None means, would lose it without a word.
    """
    skipped, lost = [], None
    for path in reversed(_numbered(folder)):
        fault = fault_of(path)
        if fault is None:
            for line in skipped:
                on_skip(f"{line}: it is skipped, and training goes on from {path}.")
            return str(path)
        if _was_whole(path):
            skipped.append(f"{path} was whole once, but {fault}")
            lost = lost or skipped[-1]
        else:
            skipped.append(
                f"{path} was not written to its end ({fault}; the run was stopped meanwhile, or it was written with"
                " `save_only_model`)"
            )
    if lost is not None:
        raise UsageError(
            f"No checkpoint in {str(folder)!r} is whole: {lost}. Restore it, or delete that folder to train this anew."
        )
    for line in skipped:
        on_skip(f"{line}: it is skipped, and training begins anew.")
    return None


def _numbered(folder: str | Path) -> list[Path]:
    """The checkpoints of a folder by their step."""
    pattern = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
    found = [path for path in Path(folder).iterdir() if path.is_dir()] if Path(folder).is_dir() else []
    numbered = [(int(match[1]), path) for path in found if (match := pattern.fullmatch(path.name))]
    return [path for _, path in sorted(numbered)]


def _was_whole(checkpoint: Path) -> bool:
    """Whether it was written to its end once: what is written last is there."""
    return all(_is_json_object(checkpoint / name) for name in (TRAINER_STATE_NAME, FILES_NAME))


def check_resumable(checkpoint: str, backend: str, num_processes: int) -> dict:
    """Refuse, before any training, what this launch cannot resume exactly.

    Args:
        checkpoint: folder of a checkpoint.
        backend: of this launch (``hf_shear.training.backends.backend_name``).
        num_processes: of this launch.

    Returns:
        Our part of the checkpoint.

    Raises:
        ValueError: the checkpoint is not whole, or was written by a launch that this one cannot continue.
    """
    fault = fault_of(checkpoint)
    if fault is not None and not (Path(checkpoint) / STATE_NAME).is_file() and not _was_whole(Path(checkpoint)):
        read_state(checkpoint)  # says that it is none of ours
    if fault is not None:
        whole = [str(path) for path in _numbered(Path(checkpoint).parent) if is_whole(path)]
        rescue = f"Resume from {whole[-1]!r}, the last whole one" if whole else "None beside it is whole: start anew"
        raise UsageError(f"`resume_from_checkpoint` {checkpoint!r} is not whole: {fault}. {rescue}.")
    state = read_state(checkpoint)
    lacking = [name for name in ("backend", "num_processes", "decides", "may_change", "parts") if name not in state]
    if lacking:
        raise UsageError(
            f"`resume_from_checkpoint` {checkpoint!r} can not be resumed: its {STATE_NAME} has no {', '.join(lacking)}."
            " Resume with the release of hf_shear that wrote it, or start anew."
        )
    written, before = state["backend"], state["num_processes"]
    if written != backend and any(name.startswith(_SHARDED) for name in (written, backend)):
        raise UsageError(
            f"`resume_from_checkpoint` {checkpoint!r} was written under {written}, and this launch is under {backend}:"
            " the optimizer's state is laid out otherwise, and would start from nothing. Resume under the same backend,"
            " or start a new run."
        )
    if backend.startswith(_SHARDED) and before != num_processes:
        raise UsageError(
            f"`resume_from_checkpoint` {checkpoint!r} was written by {before} processes, and this launch has"
            f" {num_processes}: the optimizer's state is cut into one part per process, and {backend} is not known to"
            f" read it otherwise. Resume with {before} processes, or start a new run."
        )
    return state


def _is_json_object(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):  # absent, cut off, or not text
        return False


def _opens(path: Path) -> bool:
    """Whether a file of weights or of state begins and ends as such a file does; nothing of it is loaded."""
    if path.suffix in (".pt", ".pth"):
        return zipfile.is_zipfile(path)
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt"):
                return True
        except SafetensorError:
            return False
    return True
