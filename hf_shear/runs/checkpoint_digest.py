"""What tells one pretrained checkpoint from another, whatever its path."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..sources import Source
from ..training.same_run import DIGEST

_BLOCK, _NUM_BLOCKS = 1 << 16, 1024  # of a larger file: 64 MiB, evenly spaced, from its first byte to its last
_WEIGHTS = (".safetensors", ".bin", ".gguf")
_TOKENIZER = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "vocab.txt", "spiece.model",
)  # fmt: skip


def checkpoint_digests(role: str, source: Source, tokenizer: bool = False) -> dict[str, str]:
    """What to compare on resume of a checkpoint that a run reads.

    Of a local folder, or a file, the digest covers the bytes of config.json and of weights up to 64 MiB, and of larger
    files their sizes and 64 MiB of each, evenly spaced. Of a model on the Hub it is the commit.

    Args:
        role: "source", "teacher", ...
        source: the checkpoint.
        tokenizer: whether its tokenizer's files are compared as well.
    """
    path = Path(source.name)
    if not path.exists():
        return {f"the {role}": f"{DIGEST}{source.name}@{source.revision}"}
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    weights = [file for file in files if file.suffix in _WEIGHTS or file.name == "config.json"]
    found = {f"the {role}": _digest(weights)}
    if tokenizer:
        found[f"the {role}'s tokenizer"] = _digest([file for file in files if file.name in _TOKENIZER])
    return found


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for block in range(min(_NUM_BLOCKS, -(-size // _BLOCK))):
                if size > _BLOCK * _NUM_BLOCKS:
                    file.seek(block * (size - _BLOCK) // (_NUM_BLOCKS - 1))
                digest.update(file.read(_BLOCK))
    return DIGEST + digest.hexdigest()
