"""GGUF files, which transformers dequantises as it loads them. What it would pass over in silence is refused here."""

from __future__ import annotations

import os
import struct
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from transformers import PretrainedConfig
from transformers.utils.import_utils import is_gguf_available

from ..core import MissingExtraError, UsageError
from ..shapes import find_family

_OF_BROKEN_FILES = (
    ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, OverflowError, MemoryError, OSError,
    struct.error, NotImplementedError,
)  # fmt: skip
_NO_WEIGHTS = ("rope_freqs.", "rope_factors_")  # tensors that describe the rotary embedding


def gguf_fields(argument: str, path: Path) -> dict:
    """The config's fields that a GGUF file stands for.

    Raises:
        UsageError: it is none, it is cut off, transformers does not know its architecture, or is too old for GGUF; a
            package is missing (``MissingExtraError``).
    """
    name = os.fspath(path)
    if find_spec("transformers.integrations.gguf") is None:
        raise UsageError(
            f"`{argument}` {name!r} is a GGUF file, which transformers {transformers.__version__} can not make whole"
            " weights of. Install transformers 5.24 or later."
        )
    if not is_gguf_available():
        raise MissingExtraError(
            f"`{argument}` {name!r} is a GGUF file, and gguf reads it: pip install 'hf-shear[gguf]'."
        )
    try:
        end = _end_of_tensors(os.fspath(path))
        if end > path.stat().st_size:
            raise ValueError(f"it has {path.stat().st_size:,} bytes, and its tensors end at {end:,}")
        fields, _ = PretrainedConfig.get_config_dict(path.parent, gguf_file=path.name)
    except _OF_BROKEN_FILES as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UsageError(
            f"`{argument}` {name!r} is cut off, or no GGUF file that transformers can read: {reason}. Get it anew, or give"
            " the checkpoint that it was made of."
        ) from error
    return fields


def check_gguf(argument: str, path: Path, config: PretrainedConfig) -> None:
    """Refuse what transformers leaves out as it reads the file: a scaled rotary embedding, tensors of no known name.

    Raises:
        UsageError: says what is left out.
    """
    from transformers.integrations.gguf.reader import read_gguf_metadata

    metadata, names = read_gguf_metadata(os.fspath(path))
    advice = "Give the checkpoint that it was made of."
    scaling = metadata.get(f"{metadata['general.architecture']}.rope.scaling.type", "none")
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {part.get("rope_type", "default") for part in [rope, *rope.values()] if isinstance(part, dict)}
    if (scaling != "none" or any(name.startswith(_NO_WEIGHTS) for name in names)) and kinds == {"default"}:
        raise UsageError(
            f"`{argument}` {os.fspath(path)!r} has a scaled rotary embedding, which transformers does not read from GGUF:"
            f" the model would compute another function. {advice}"
        )
    family = find_family(config)
    if family is None or family.has_experts:
        return  # pieces of experts are not counted alike: transformers' report on loading has to do
    with torch.device("meta"):
        state = family.model_class(config).state_dict()
    expected = len(state) - ("lm_head.weight" in state and config.tie_word_embeddings)
    found = sum(not name.startswith(_NO_WEIGHTS) for name in names)
    if found != expected:
        raise UsageError(
            f"`{argument}` {os.fspath(path)!r} holds {found} weights, and a {config.model_type} of its config {expected}:"
            f" transformers would leave some out. {advice}"
        )


def _end_of_tensors(path: str) -> int:
    """Byte behind the last tensor, by the reader that transformers loads a file of this architecture with."""
    from transformers.integrations.gguf.reader import GgufHeader, read_gguf_metadata
    from transformers.integrations.gguf.utils import is_gguf_arch_supported

    metadata, _ = read_gguf_metadata(path)
    if is_gguf_arch_supported(metadata["general.architecture"]):
        header = GgufHeader.from_file(path)
        return max((info.offset + info.nbytes for info in header.tensors), default=0) + header.data_start
    from gguf import GGUFReader  # which knows more forms of quantised weights, and takes longer

    return max((int(tensor.data_offset + tensor.n_bytes) for tensor in GGUFReader(path).tensors), default=0)
