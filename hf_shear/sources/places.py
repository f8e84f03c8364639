"""Where a checkpoint is: a folder, a GGUF file, or a name on the Hub."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..core import UsageError

WEIGHT_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Files that weights begin with, in the order in which transformers looks for them."""

ADAPTER = "adapter_config.json"
_OF_PROCESSES = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")


@dataclass(frozen=True)
class Place:
    """A checkpoint's place.

    Attributes:
        name: a folder, or a name on the Hub: what transformers is given.
        gguf_file: name of the file in it that holds the weights, where they are in GGUF.
    """

    name: str
    gguf_file: str | None = None

    @property
    def folder(self) -> Path | None:
        """The folder; None on the Hub."""
        return Path(self.name) if Path(self.name).is_dir() else None

    @property
    def options(self) -> dict[str, str]:
        """What every loader of transformers has to be told of it."""
        return {} if self.gguf_file is None else {"gguf_file": self.gguf_file}


def find_place(argument: str, name: str | os.PathLike) -> Place:
    """The place that a user named.

    Raises:
        UsageError: there is nothing, an adapter, several GGUF files, or part of one.
    """
    path = Path(name)
    if path.suffix == ".gguf" and path.is_file():
        return Place(str(path.parent), _whole_gguf(argument, path))
    if not path.exists() and not _looks_like_a_path(str(name)):
        return Place(str(name))
    if not path.is_dir():
        state = "is a file" if path.exists() else "does not exist"
        raise UsageError(
            f"`{argument}` must be the folder of a checkpoint or a .gguf file, but {str(name)!r} {state}."
            " Give the path of one."
        )
    if (path / ADAPTER).is_file():
        raise UsageError(adapter_refusal(argument, name))
    if any(_OF_PROCESSES.fullmatch(file.name) for file in path.iterdir()):
        raise UsageError(
            f"`{argument}` {str(name)!r} holds the weights of several processes (shard-00001-model-...), which transformers"
            " would read in place of the others. Give a checkpoint that was saved whole."
        )
    ggufs = sorted(path.glob("*.gguf"))
    if not ggufs or any((path / weights).is_file() for weights in WEIGHT_NAMES):
        return Place(str(path))
    if len(ggufs) > 1:
        raise UsageError(
            f"`{argument}` {str(name)!r} holds several GGUF files, {', '.join(file.name for file in ggufs[:5])}. Name one"
            " of them."
        )
    return Place(str(path), _whole_gguf(argument, ggufs[0]))


def adapter_refusal(argument: str, name: str | os.PathLike) -> str:
    """What to do with an adapter that was named where a whole checkpoint is needed."""
    return (
        f"`{argument}` must be a whole checkpoint, but {str(name)!r} holds an adapter. Merge it into the checkpoint that"
        f" it was trained on, and name the result: hf-shear export {name} --base CHECKPOINT --output_dir MERGED."
    )


def _whole_gguf(argument: str, path: Path) -> str:
    if "-of-0" in path.name:
        raise UsageError(
            f"`{argument}` {str(path)!r} is a part of a model that was split into several files. Join them first, with"
            " llama.cpp's `llama-gguf-split --merge`."
        )
    return path.name


def _looks_like_a_path(name: str) -> bool:
    """A name on the Hub is `name` or `owner/name`, and its owner is no folder here."""
    parts = Path(name).parts
    is_short = len(parts) == 1 or (len(parts) == 2 and not Path(parts[0]).is_dir())
    return name.startswith((".", "~", os.sep)) or not is_short or name.endswith(".gguf")
