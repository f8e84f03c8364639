"""Checkpoints by path or by name on the Hub: refused where they cannot be evaluated, before any weight is loaded."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..core import UsageError

MASKED_PREFIX = "shearing_"  # model_type of checkpoints with masks starts so


def check_checkpoint(argument: str, name: str | os.PathLike) -> PretrainedConfig:
    """The config of a plain checkpoint.

    Args:
        argument: what the user called it, for messages.
        name: a folder, or a name on the Hub.

    Raises:
        ValueError: the path does not exist or holds no checkpoint, or the model still has masks.
        OSError: it is no folder here, and the Hub cannot be reached or does not have it.
    """
    folder = Path(name)
    if folder.exists() or _looks_like_a_path(str(name)):
        _check_folder(argument, folder)
    try:
        fields, _ = PretrainedConfig.get_config_dict(name)
        model_type = fields.get("model_type", "")
        if model_type.startswith(MASKED_PREFIX):
            raise UsageError(
                f"`{argument}` must be a plain checkpoint, but {str(name)!r} still has masks (model_type"
                f" {model_type!r}), so its size and speed are the source's. Export it first: hf-shear export {name}"
            )
        return AutoConfig.from_pretrained(name)
    except OSError as error:
        raise OSError(_not_loaded(argument, name, error)) from error


def load_tokenizer(argument: str, name: str | os.PathLike) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint.

    Raises:
        ValueError: the folder holds none.
        OSError: the Hub cannot be reached, or has none.
    """
    files = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
    if Path(name).is_dir() and not any((Path(name) / file).is_file() for file in files):
        raise UsageError(f"`{argument}` {str(name)!r} holds no tokenizer. Copy the source's tokenizer files into it.")
    try:
        return AutoTokenizer.from_pretrained(name)
    except OSError as error:
        raise OSError(_not_loaded(argument, name, error)) from error


def load_model(name: str | os.PathLike, device: torch.device, dtype: torch.dtype | None) -> PreTrainedModel:
    """The model on a device, in evaluation mode; in the checkpoint's own dtype if none is named."""
    options = {} if dtype is None else {"dtype": dtype}
    return AutoModelForCausalLM.from_pretrained(name, **options).to(device).eval()


def _looks_like_a_path(name: str) -> bool:
    """A name on the Hub is `name` or `owner/name`, and its owner is no folder here."""
    parts = Path(name).parts
    return name.startswith((".", "~", os.sep)) or len(parts) > 2 or (len(parts) == 2 and Path(parts[0]).is_dir())


def _check_folder(argument: str, folder: Path) -> None:
    if not folder.is_dir():
        state = "is a file" if folder.exists() else "does not exist"
        raise UsageError(f"`{argument}` must be the folder of a checkpoint, but {str(folder)!r} {state}.")
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise UsageError(
                f"`{argument}` must be a whole checkpoint, but {str(folder)!r} holds an adapter. Merge it into its model"
                " first (peft: `merge_and_unload`)."
            )
        raise UsageError(f"`{argument}` must be the folder of a checkpoint, but {str(folder)!r} has no config.json.")
    if not weight_files(folder):
        raise UsageError(f"`{argument}` must be a whole checkpoint, but {str(folder)!r} holds no weights.")


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a checkpoint's weights: safetensors, or PyTorch's own where there are none."""
    return sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def _not_loaded(argument: str, name: str | os.PathLike, error: OSError) -> str:
    if Path(name).is_dir():
        return f"`{argument}` {str(name)!r} could not be read: {error}"
    reason = str(error).split("\n")[0]
    return (
        f"`{argument}` {str(name)!r} is no folder here, and it could not be loaded from the Hub: {reason} Give the path"
        " of a checkpoint, or a name on the Hub with a network."
    )
