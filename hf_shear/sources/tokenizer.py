"""Whether a tokenizer lies beside a checkpoint, and is one that transformers has the code of."""

from __future__ import annotations

from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

from ..core import UsageError, read_json_object
from .places import Place

TOKENIZER_NAMES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
"""Any of which a tokenizer has."""


def has_tokenizer(place: Place) -> bool:
    """Whether there is one; a name on the Hub is taken to have one."""
    beside = place.folder is None or any((place.folder / file).is_file() for file in TOKENIZER_NAMES)
    return beside or place.gguf_file is not None


def check_tokenizer(argument: str, place: Place) -> bool:
    """Whether the tokenizer is inside of a GGUF file, without files of its own.

    Raises:
        UsageError: there is none, or it needs code of its own.
    """
    folder = place.folder
    if folder is None:
        return False
    if not has_tokenizer(place):
        raise UsageError(f"`{argument}` {str(folder)!r} holds no tokenizer. Copy the source's tokenizer files into it.")
    if (folder / "tokenizer.json").is_file():
        if "model" not in read_json_object(folder / "tokenizer.json", f"`{argument}`: the tokenizer"):
            raise UsageError(
                f"`{argument}`: {str(folder / 'tokenizer.json')!r} lacks `model`, so it is no tokenizer. Get it anew."
            )
    path = folder / "tokenizer_config.json"
    if path.is_file():
        _refuse_own_code(argument, path)
    return place.gguf_file is not None and not any((folder / file).is_file() for file in TOKENIZER_NAMES)


def _refuse_own_code(argument: str, path) -> None:
    fields = read_json_object(path, f"`{argument}`: the tokenizer's config")
    code, known = fields.get("auto_map"), fields.get("tokenizer_class")
    if code and not (isinstance(known, str) and tokenizer_class_from_name(known)):
        raise UsageError(
            f"`{argument}` {str(path.parent)!r} has a tokenizer with code of its own (auto_map in tokenizer_config.json),"
            " which hf-shear never runs. Give a tokenizer of a class that transformers has itself."
        )
