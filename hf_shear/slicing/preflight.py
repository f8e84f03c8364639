"""Save a result once before any work, as it will be saved at the end: what cannot be saved is known at the start."""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging

from ..core import UsageError, by_main_process
from ..sources import savable_generation_config
from .older_config_fields import add_older_config_fields
from .tokenizer_files import SAMPLE, save_tokenizer

_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)

_TRIAL = ".trial"

logger = logging.get_logger(__name__)


def check_saves(
    output_dir: str | os.PathLike,
    config: PretrainedConfig | None = None,
    tokenizer=None,
    generation_config: GenerationConfig | None = None,
    *,
    argument: str = "output_dir",
    result_bytes: int = 0,
    checkpoint_bytes: int = 0,
) -> None:
    """Save config, generation_config, tokenizer and a small tensor where the result will be, read them back, remove them.

    With several processes all of them call this; the main one does it.

    Args:
        output_dir: of the result; it need not exist, and is not made.
        config: of the result; None: only the folder is tried.
        tokenizer, generation_config: that the result is saved with, if any.
        argument: that names ``output_dir``, for messages.
        result_bytes: what the results will take; more than is free is refused.
        checkpoint_bytes: what checkpoints during training may take besides; more than is free then is warned of.

    Raises:
        UsageError: something cannot be written, or reads back as something else.
    """
    named = f"`{argument}` {str(output_dir)!r}"
    by_main_process(
        lambda: _check(Path(output_dir), named, config, tokenizer, generation_config, result_bytes, checkpoint_bytes)
    )


def _check(output_dir: Path, named: str, config, tokenizer, generation_config, result_bytes, checkpoint_bytes) -> None:
    place = _nearest_folder(output_dir, named)
    for left in place.glob(f".{glob.escape(output_dir.name)}.*{_TRIAL}"):  # by a process that was killed meanwhile
        shutil.rmtree(left, ignore_errors=True)
    try:
        trial = Path(tempfile.mkdtemp(prefix=f".{output_dir.name}.", suffix=_TRIAL, dir=place))
    except OSError as error:
        raise _not_writable(named, error) from error
    try:
        _try_tensor(named, trial)
        if config is not None:
            _try_config(named, trial, config, generation_config)
        if tokenizer is not None:
            _try_tokenizer(named, trial, tokenizer)
    finally:
        shutil.rmtree(trial, ignore_errors=True)
    _check_room(named, shutil.disk_usage(place).free, result_bytes, checkpoint_bytes)


def _nearest_folder(output_dir: Path, named: str) -> Path:
    """``output_dir`` itself, or the folder in which it will be made with those that lead to it."""
    place = output_dir.absolute()
    while not place.exists():
        if place.is_symlink():
            raise UsageError(f"{named} cannot be made: {str(place)!r} is a link to nothing. Name another folder.")
        place = place.parent
    if not place.is_dir():
        raise UsageError(f"{named} cannot be made: {str(place)!r} is a file. Name another folder.")
    return place


def _try_tensor(named: str, trial: Path) -> None:
    path, tensor = trial / "model.safetensors", torch.arange(16.0)
    _write(named, lambda: save_file({"trial": tensor}, path))
    if not torch.equal(load_file(path)["trial"], tensor):
        raise UsageError(
            f"{named}: a tensor that was written there reads back as another. Name a folder on another disk."
        )


def _try_config(named: str, trial: Path, config: PretrainedConfig, generation_config) -> None:
    if generation_config is not None:
        generation_config = savable_generation_config(generation_config)

    def save() -> None:
        config.save_pretrained(trial)
        add_older_config_fields(trial)
        if generation_config is not None:
            generation_config.save_pretrained(trial)

    _write(named, save)
    read = AutoConfig.from_pretrained(trial)
    ignored = ("architectures", "_name_or_path", "transformers_version", "rope_theta", "rope_scaling", "torch_dtype")
    before, after = (json.loads(c.to_json_string(use_diff=False)) for c in (config, read))
    changed = sorted(name for name in before if name not in ignored and after.get(name) != before[name])
    if type(read) is type(config) and changed:
        name = changed[0]
        raise UsageError(
            f"`{name}` of the result's config is {before[name]!r}, but reads back as {after.get(name)!r} once it is saved."
            " Mend the source's config.json."
        )


def _try_tokenizer(named: str, trial: Path, tokenizer) -> None:
    what = f"The tokenizer ({type(tokenizer).__name__}{_of(tokenizer)})"
    mend = "Give the source a tokenizer that `AutoTokenizer.from_pretrained(SOURCE).save_pretrained(FOLDER)` saves."
    try:
        _write(named, lambda: save_tokenizer(tokenizer, trial))
    except UsageError:
        raise
    except Exception as error:  # whatever the code of a tokenizer raises, it is the source's, and found in time
        raise UsageError(f"{what} cannot be saved: {type(error).__name__}: {error} {mend}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return
    try:
        read = AutoTokenizer.from_pretrained(trial)
    except Exception as error:
        raise UsageError(f"{what} was saved, but does not load: {type(error).__name__}: {error} {mend}") from error
    before, after = tokenizer(SAMPLE).input_ids, read(SAMPLE).input_ids
    if before != after or len(read) != len(tokenizer):
        raise UsageError(
            f"{what} is another one once it is saved: {SAMPLE!r} gives {after} in place of {before}, of {len(read)} tokens"
            f" in place of {len(tokenizer)}. {mend}"
        )


def _of(tokenizer) -> str:
    name = getattr(tokenizer, "name_or_path", "")
    return f" of {name!r}" if name else ""


def _write(named: str, save: Callable[[], object]) -> None:
    """Do what writes to the disk of the result; what only the disk can be blamed for is said so."""
    try:
        save()
    except SafetensorError as error:
        raise _not_writable(named, error) from error
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            raise
        raise _not_writable(named, error) from error


def _not_writable(named: str, error: Exception) -> UsageError:
    reason = getattr(error, "strerror", None) or error
    return UsageError(
        f"{named} cannot be written to: {reason}. Name a folder on a disk with room that you may write to."
    )


def _check_room(named: str, free: int, result_bytes: int, checkpoint_bytes: int) -> None:
    if result_bytes > free:
        raise UsageError(
            f"{named} must have room for the results, {result_bytes:,} bytes, but {free:,} are"
            " free. Make room, or name a folder on another disk."
        )
    if result_bytes + checkpoint_bytes > free:
        logger.warning_once(
            f"Results ({result_bytes:,} bytes) and checkpoints during training (up to {checkpoint_bytes:,}) may not find"
            f" room in {named}, where {free:,} are free. `save_total_limit` keeps fewer checkpoints."
        )
