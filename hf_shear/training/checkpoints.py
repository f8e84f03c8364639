"""Which checkpoints are whole, and which can be resumed by this launch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..core import FailedError, UsageError
from .state_file import STATE_NAME, read_state

TRAINER_STATE_NAME = "trainer_state.json"
_SHARDED = ("DeepSpeed", "FSDP")  # backends whose optimizer state is in parts


class CheckpointError(FailedError):
    """A checkpoint could not be written; what was written before it is intact."""


def is_whole(checkpoint: str | Path) -> bool:
    """Whether a checkpoint was written to its end.

    ``trainer_state.json`` is written last, by the main process, after all processes have written their parts
    (``ShearTrainer`` waits for them); it must be whole itself.
    """
    return _is_json(Path(checkpoint) / TRAINER_STATE_NAME) and _is_json(Path(checkpoint) / STATE_NAME)


def unmark(checkpoint: str | Path) -> None:
    """Take away what marks a checkpoint as whole, before it is written over."""
    for name in (TRAINER_STATE_NAME, STATE_NAME):
        (Path(checkpoint) / name).unlink(missing_ok=True)


def last_whole_checkpoint(folder: str | Path, on_skip: Callable[[str], None] = lambda text: None) -> str | None:
    """The last checkpoint of a folder that can be resumed, or None.

    Args:
        folder: that holds ``checkpoint-<step>``.
        on_skip: called with a line of text for each later one that was not written to its end.
    """
    pattern = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
    found = [path for path in Path(folder).iterdir() if path.is_dir()] if Path(folder).is_dir() else []
    numbered = sorted((int(match[1]), path) for path in found if (match := pattern.fullmatch(path.name)))
    for _, path in reversed(numbered):
        if is_whole(path):
            return str(path)
        on_skip(
            f"{path} was not written to its end (the run was stopped meanwhile, or it was written with"
            " `save_only_model`): it is skipped."
        )
    return None


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
    if (Path(checkpoint) / STATE_NAME).is_file() and not is_whole(checkpoint):
        raise UsageError(
            f"`resume_from_checkpoint` {checkpoint!r} was not written to its end. Resume from an earlier one;"
            " `resume_from_checkpoint=True` finds the last that is whole."
        )
    state = read_state(checkpoint)
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


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # absent, cut off, or not text
        return False
    return True
