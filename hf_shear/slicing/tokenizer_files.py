"""Save a tokenizer with its SentencePiece model, which transformers 5 reads but does not write again.

Engines that tokenise by themselves need it: llama.cpp's converter takes the scores of the pieces from it, and without
them splits text into other pieces than the model was trained on.
"""

from __future__ import annotations

import shutil
from pathlib import Path

SENTENCEPIECE_NAME = "tokenizer.model"


def save_tokenizer(processing_class, folder: Path) -> None:
    """Everything that ``save_pretrained`` writes, and the source's ``tokenizer.model`` if there was one."""
    processing_class.save_pretrained(folder)
    pieces = sentencepiece_file(processing_class)
    if pieces is not None and not (folder / SENTENCEPIECE_NAME).exists():
        shutil.copyfile(pieces, folder / SENTENCEPIECE_NAME)


def sentencepiece_file(processing_class) -> Path | None:
    """The ``tokenizer.model`` that the tokenizer was loaded beside, None if there is none."""
    vocab_file = getattr(processing_class, "vocab_file", None)
    path = Path(vocab_file) if vocab_file else None
    return path if path is not None and path.name == SENTENCEPIECE_NAME and path.is_file() else None
