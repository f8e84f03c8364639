"""Which files of a folder are published, by their kinds, and whether the model is all there.

A checkpoint may have been received from anywhere, so nothing is taken from it but plain files that lie in it and are of a
kind in ``kinds_of_files``. The others are left out, and named (``files_left_out``): a folder of a training run holds
pickles, logs and settings that are nobody's business, and to refuse it would have them deleted by hand, in a hurry.
"""

from __future__ import annotations

import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..core import EVALUATION_NAME, REPORT_NAME, RESULTS_NAME, UsageError, read_json_object
from ..modeling.configuration import LOADER
from ..slicing import CONFIGURATION, PROVENANCE_NAME, PRUNE_CONFIG_NAME
from ..sources import MASKED_PREFIX
from .card_picture import PICTURE_NAME
from .plain_files import plain_file
from .source_model import LICENSE_NAMES

SINGLE_WEIGHTS, SHARDED_WEIGHTS = "model.safetensors", "model.safetensors.index.json"
SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\.safetensors")
CONFIG_NAMES = ("config.json", "generation_config.json")
CARD_NAME = "README.md"
TOKENIZER_NAMES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
TERMS_NAMES = (*LICENSE_NAMES, "NOTICE", "USE_POLICY.md")
EXPORT_AGAIN = "Export the checkpoint again."


def checkpoint_config(checkpoint: Path) -> dict:
    """The checkpoint's config.json.

    Raises:
        UsageError: it is missing, a link or no JSON object.
    """
    path = checkpoint / "config.json"
    if not plain_file(path):
        raise UsageError(
            f"{str(checkpoint)!r} is no checkpoint: it has no config.json. Name the folder of a run (with results.json),"
            " or a folder that `save_pretrained` wrote."
        )
    config = read_json_object(path, fix=EXPORT_AGAIN)
    if not isinstance(config.get("model_type"), str) or not config["model_type"]:
        raise UsageError(f"{str(path)!r} names no `model_type`, so nothing could load it. {EXPORT_AGAIN}")
    return config


def is_masked(config: dict) -> bool:
    """Whether the checkpoint is of a model in the middle of mask learning."""
    return config["model_type"].startswith(MASKED_PREFIX)


def weight_files(checkpoint: Path) -> list[str]:
    """Names of the files with weights (and of their index), each of them complete.

    Raises:
        UsageError: a file is missing, a link or cut short, a tensor that the index names is in no file, or the index names
            a file in another folder.
    """
    if plain_file(checkpoint / SINGLE_WEIGHTS):
        _tensor_names(checkpoint / SINGLE_WEIGHTS)
        return [SINGLE_WEIGHTS]
    index = checkpoint / SHARDED_WEIGHTS
    if not plain_file(index):
        raise UsageError(
            f"{str(checkpoint)!r} has no weights: neither {SINGLE_WEIGHTS} nor {SHARDED_WEIGHTS}. Merge an adapter"
            " into its model first (`merge_and_unload`), and save weights of other formats again with `save_pretrained`."
        )
    weight_map = _weight_map(index)
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        if not plain_file(checkpoint / shard):
            raise UsageError(f"{str(checkpoint)!r} lacks {shard}, which its index names. Export or download it again.")
        missing = {name for name, file in weight_map.items() if file == shard} - _tensor_names(checkpoint / shard)
        if missing:
            raise UsageError(f"{str(checkpoint / shard)!r} lacks the tensor {min(missing)!r}. Export it again.")
    return [SHARDED_WEIGHTS, *shards]


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json_object(index, fix=EXPORT_AGAIN).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UsageError(f"{str(index)!r} has no `weight_map` with the file of each tensor. {EXPORT_AGAIN}")
    for shard in weight_map.values():
        if not isinstance(shard, str) or not SHARD_NAME.fullmatch(shard):
            raise UsageError(
                f"{str(index)!r} names the file {shard!r}, but weights lie beside their index, in files that end in"
                f" .safetensors. {EXPORT_AGAIN}"
            )
    return weight_map


def _tensor_names(path: Path) -> set[str]:
    """Reads the header only, which knows how long the file must be."""
    try:
        with safe_open(path, framework="pt") as weights:
            return set(weights.keys())
    except SafetensorError as error:
        raise UsageError(f"{str(path)!r} is damaged or cut short ({error}). Export or download it again.") from error


def other_files(checkpoint: Path) -> list[str]:
    """Names of the config, tokenizer and licence files that are there; nothing of a trainer's state."""
    found = [name for name in (*CONFIG_NAMES, *TOKENIZER_NAMES, *TERMS_NAMES) if plain_file(checkpoint / name)]
    return found + [own.name for own in (CONFIGURATION, LOADER) if _holds(checkpoint / own.name, own.read_bytes())]


def _holds(path: Path, code: bytes) -> bool:
    """Whether a file is code to the letter as this package writes it beside weights: no other is published."""
    return plain_file(path) and path.stat().st_size == len(code) and path.read_bytes() == code


def has_chat_template(checkpoint: Path) -> bool:
    """Whether the tokenizer in a folder has a chat template."""
    if plain_file(checkpoint / "chat_template.jinja"):
        return True
    path = checkpoint / "tokenizer_config.json"
    return plain_file(path) and bool(read_json_object(path).get("chat_template"))


def files_left_out(checkpoint: Path) -> list[str]:
    """Names of what lies in the folder and is not published: what is of no kind above, folders too."""
    published = {
        *weight_files(checkpoint), *other_files(checkpoint),
        CARD_NAME, PICTURE_NAME, REPORT_NAME, RESULTS_NAME, EVALUATION_NAME, PROVENANCE_NAME, PRUNE_CONFIG_NAME,
    }  # fmt: skip
    return sorted(path.name + "/" * path.is_dir() for path in checkpoint.iterdir() if path.name not in published)
