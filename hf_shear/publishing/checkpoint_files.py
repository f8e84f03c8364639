"""Which files of a folder are the model, and whether they are all there."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..core import UsageError
from ..modeling import MASKED_PREFIX
from .source_model import LICENSE_NAMES

SINGLE_WEIGHTS, SHARDED_WEIGHTS = "model.safetensors", "model.safetensors.index.json"
CONFIG_NAMES = ("config.json", "generation_config.json")
TOKENIZER_NAMES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip


def checkpoint_config(checkpoint: Path) -> dict:
    """The checkpoint's config.json.

    Raises:
        ValueError: it is missing or no JSON object.
    """
    path = checkpoint / "config.json"
    if not path.is_file():
        raise UsageError(
            f"{str(checkpoint)!r} is no checkpoint: it has no config.json. Name the folder of a run (with results.json),"
            " or a folder that `save_pretrained` wrote."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{str(path)!r} is not valid JSON: {error}. Export the checkpoint again.") from error
    if not isinstance(config, dict) or not config.get("model_type"):
        raise UsageError(f"{str(path)!r} names no `model_type`, so nothing could load it. Export the checkpoint again.")
    return config


def is_masked(config: dict) -> bool:
    """Whether the checkpoint is of a model in the middle of mask learning."""
    return config["model_type"].startswith(MASKED_PREFIX)


def weight_files(checkpoint: Path) -> list[str]:
    """Names of the files with weights (and of their index), each of them complete.

    Raises:
        ValueError: a file is missing or cut short, or a tensor that the index names is in no file.
    """
    if (checkpoint / SINGLE_WEIGHTS).is_file():
        _tensor_names(checkpoint / SINGLE_WEIGHTS)
        return [SINGLE_WEIGHTS]
    index = checkpoint / SHARDED_WEIGHTS
    if not index.is_file():
        raise UsageError(
            f"{str(checkpoint)!r} has no weights: neither {SINGLE_WEIGHTS} nor {SHARDED_WEIGHTS}. An adapter is merged"
            " into its model first (`merge_and_unload`), and weights of other formats are saved again with"
            " `save_pretrained`."
        )
    weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    for shard in sorted(set(weight_map.values())):
        if not (checkpoint / shard).is_file():
            raise UsageError(f"{str(checkpoint)!r} lacks {shard}, which its index names. Export or download it again.")
        missing = {name for name, file in weight_map.items() if file == shard} - _tensor_names(checkpoint / shard)
        if missing:
            raise UsageError(f"{str(checkpoint / shard)!r} lacks the tensor {min(missing)!r}. Export it again.")
    return [SHARDED_WEIGHTS, *sorted(set(weight_map.values()))]


def _tensor_names(path: Path) -> set[str]:
    """Reads the header only, which knows how long the file must be."""
    try:
        with safe_open(path, framework="pt") as weights:
            return set(weights.keys())
    except SafetensorError as error:
        raise UsageError(f"{str(path)!r} is damaged or cut short ({error}). Export or download it again.") from error


def other_files(checkpoint: Path) -> list[str]:
    """Names of the config, tokenizer and licence files that are there; nothing of a trainer's state."""
    names = (*CONFIG_NAMES, *TOKENIZER_NAMES, *LICENSE_NAMES, "NOTICE", "USE_POLICY.md")
    return [name for name in names if (checkpoint / name).is_file()]
