"""What our trainer keeps in a checkpoint beside transformers' own files: small JSON, of all and of each process."""

from __future__ import annotations

import json
import os

from ..core import UsageError

STATE_NAME = "shear_state.json"
_PROCESS_STATE_NAME = "shear_state_{process}.json"


def write_json_atomically(path: str | os.PathLike, content: dict) -> None:
    """Write ``content`` so that ``path`` holds either the old or the new text, never half of it.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    temporary = f"{path}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_state(checkpoint: str, state: dict) -> None:
    """Write our part of a checkpoint."""
    write_json_atomically(os.path.join(checkpoint, STATE_NAME), state)


def read_state(checkpoint: str) -> dict:
    """Read our part of a checkpoint.

    Raises:
        ValueError: the checkpoint was not written by ShearTrainer, or holds what is no number.
    """
    path = os.path.join(checkpoint, STATE_NAME)
    if not os.path.isfile(path):
        raise UsageError(
            f"`resume_from_checkpoint` {checkpoint!r} has no {STATE_NAME}: it was not written by ShearTrainer, is"
            " incomplete, or was written with `save_only_model`. Resume from another checkpoint, or start anew."
        )
    return read_json(path)


def read_json(path: str | os.PathLike) -> dict:
    """The JSON object in a file.

    Raises:
        ValueError: it is cut off, is no object, or holds NaN or infinity, which nothing of ours writes.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{str(path)!r} is not whole: {error}. Restore the file, or start anew.") from error
    if not isinstance(content, dict):
        raise UsageError(f"{str(path)!r} must be a JSON object, but it is {type(content).__name__}. Restore the file.")
    return content


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}")


def write_process_state(checkpoint: str, process: int, state: dict) -> None:
    """Write what differs by process: where it stands in its streams of data, its sum of losses not logged yet."""
    write_json_atomically(os.path.join(checkpoint, _PROCESS_STATE_NAME.format(process=process)), state)


def read_process_state(checkpoint: str, process: int) -> dict:
    """What ``write_process_state`` wrote for this process; {} for a process that was not there."""
    path = os.path.join(checkpoint, _PROCESS_STATE_NAME.format(process=process))
    if not os.path.isfile(path):
        return {}
    return read_json(path)
