"""How documents become token ids: what packing a data set and packing a stream have in common.

Each document is encoded without special tokens and ended by one EOS token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZE_BATCH = 64  # documents encoded at once: bounds memory with long documents


def encode_documents(batch: dict[str, list[str]], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[list[int]]]:
    """The ids of each document, without special tokens, and one EOS."""
    encoded = tokenizer(
        batch["text"], add_special_tokens=False, return_attention_mask=False, truncation=False, verbose=False
    )
    return {"input_ids": [[*ids, tokenizer.eos_token_id] for ids in encoded["input_ids"]]}


def document_positions(lengths: np.ndarray) -> np.ndarray:
    """[sum of lengths] int32: 0, 1, ... within every document."""
    ends = np.cumsum(lengths)
    return (np.arange(lengths.sum()) - np.repeat(ends - lengths, lengths)).astype(np.int32)


def restart_positions(positions: np.ndarray) -> np.ndarray:
    """Let the first document of a sample, which may have begun in the sample before, start at 0."""
    borders = np.flatnonzero(positions[1:] == 0) + 1
    first = borders[0] if len(borders) else len(positions)
    return np.concatenate([positions[:first] - positions[0], positions[first:]])
