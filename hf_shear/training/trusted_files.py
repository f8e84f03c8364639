"""Files that DeepSpeed and FSDP unpickle, which runs whatever code is in them, are read only if this user wrote them.

A checkpoint is a folder that may come from anyone. Everything of it is read as JSON, as safetensors, or by torch with
``weights_only``, none of which runs code; DeepSpeed's states and FSDP's metadata are pickles. The digests of those that a
run of this user wrote stand in a record outside of all run folders, so that none that comes with a folder counts. There
are no keys: who can write to the record can run code as this user already.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import gather_object
from huggingface_hub.constants import HF_HOME

from ..core import UsageError, write_json_atomically

_LATEST = ("latest", "latest_universal")  # DeepSpeed's files with the name of the folder that it reads
_METADATA = ".metadata"  # of torch.distributed.checkpoint


def record_folder() -> Path:
    """Where the digests of this user's own files are: a file for each checkpoint."""
    return Path(HF_HOME) / "hf_shear" / "trusted_checkpoints"


def unpickled_files(checkpoint: str | Path, backend: str) -> list[str]:
    """Names of the files of a checkpoint that this backend unpickles, relative to it, sorted.

    Raises:
        ValueError: the checkpoint sends DeepSpeed to another folder.
    """
    checkpoint, found = Path(checkpoint), []
    if backend.startswith("DeepSpeed"):
        for latest in (checkpoint / name for name in _LATEST):
            if latest.is_file() and not _names_folder_of(checkpoint, latest.read_text(encoding="utf-8").strip()):
                raise UsageError(
                    f"`resume_from_checkpoint` {str(checkpoint)!r} has a file {latest.name!r} that names no folder in it."
                    " Resume from another checkpoint."
                )
    elif not backend.startswith("FSDP"):
        return []
    for folder, _, names in os.walk(checkpoint, followlinks=True):
        if Path(folder) != checkpoint:
            found += [str(Path(folder, name).relative_to(checkpoint).as_posix()) for name in names]
    return sorted(name for name in found if backend.startswith("DeepSpeed") or Path(name).name == _METADATA)


def note_trusted(checkpoint: str | Path, backend: str) -> None:
    """Record the digests of what this run has written; all processes must call it, each reads a part of the files.

    Records of checkpoints beside it that are gone are dropped.
    """
    checkpoint = Path(checkpoint).absolute()
    digests = _digests(checkpoint, unpickled_files(checkpoint, backend))
    if not digests or int(os.environ.get("LOCAL_RANK", 0)) != 0:  # one record for each machine
        return
    folder = record_folder()
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.json"):
        other = Path(_read(path).get("checkpoint", ""))
        if other.parent == checkpoint.parent and not other.is_dir():
            path.unlink(missing_ok=True)
    record = {"checkpoint": str(checkpoint), "sha256": sorted({digest for _, digest in digests})}
    write_json_atomically(folder / f"{hashlib.sha256(str(checkpoint).encode()).hexdigest()}.json", record)


def check_trusted(checkpoint: str | Path, backend: str) -> None:
    """Refuse a checkpoint with files to unpickle that no run of this user wrote; all processes must call it.

    Raises:
        ValueError: names the first such file.
    """
    digests = _digests(Path(checkpoint), unpickled_files(checkpoint, backend))
    known = {digest for path in record_folder().glob("*.json") for digest in _read(path).get("sha256", [])}
    unknown = sorted({name for name, digest in digests if digest not in known})
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise UsageError(
            f"`resume_from_checkpoint` {str(checkpoint)!r} holds pickled files ({unknown[0]}{more}) that no run of yours"
            f" on this machine wrote, as {str(record_folder())!r} says: {backend} would run any code that is in them. If"
            " you trust whoever wrote them, give `--trust_checkpoint` (`trust_checkpoint=True`)."
        )


def _digests(checkpoint: Path, names: list[str]) -> list[tuple[str, str]]:
    """(name, SHA-256) of the files. The processes of a machine share the work, and all processes are told of all."""
    share, of = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    mine = [(name, _digest(checkpoint / name)) for name in names[share % of :: of]]
    return gather_object(mine) if PartialState().num_processes > 1 else mine


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _names_folder_of(checkpoint: Path, name: str) -> bool:
    return name == Path(name).name and name not in ("", ".", "..") and (checkpoint / name).is_dir()


def _read(path: Path) -> dict:
    """An entry of the record; {} for one that is not whole or just gone: its checkpoint counts as not known."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
