"""How documents become token ids: what packing, streams and evaluation have in common.

Documents are encoded without special tokens. Control tokens that are written in a document (`</s>`, `<|im_start|>`) stay
text: else whoever wrote it would end documents or take roles, and what others read as text the model would not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..core import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZE_BATCH = 64  # documents encoded at once: bounds memory with long documents
SHOWN = 20  # characters around what a message is about


def encode_texts(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    parse_special_tokens: bool = False,
    vocab_size: int | None = None,
) -> list[list[int]]:
    """The ids of each document, without special tokens around it.

    Args:
        texts: documents.
        tokenizer: of any kind.
        parse_special_tokens: let control tokens that are written in the text be such tokens.
        vocab_size: of the model, if the tokenizer has ids beyond it (see `vocabulary_limit`).

    Raises:
        UsageError: a document is no string; it gives an id that the model does not have, or names a control token of such
            an id; or the tokenizer cannot keep control tokens as text.
    """
    for text in texts:
        if not isinstance(text, str):
            raise UsageError(
                f"Every document must be a string, but one is {'null' if text is None else type(text).__name__}. Leave it"
                " out, or convert it."
            )
    control = control_tokens(tokenizer)
    if vocab_size is not None:
        for token, token_id in control.items():
            if token_id >= vocab_size:
                _refuse_written(token, token_id, vocab_size, texts)
    encoded = tokenizer(
        list(texts),
        add_special_tokens=False,
        return_attention_mask=False,
        truncation=False,
        verbose=False,
        split_special_tokens=not parse_special_tokens,
    )["input_ids"]
    flat = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in encoded]) if encoded else np.zeros(0, np.int64)
    if vocab_size is not None and flat.max(initial=0) >= vocab_size:
        raise _beyond(str(tokenizer.convert_ids_to_tokens(int(flat.max()))), int(flat.max()), vocab_size)
    if not parse_special_tokens:
        unwanted = [token_id for token, token_id in control.items() if token_id != tokenizer.unk_token_id]
        if np.isin(flat, unwanted).any():
            token = tokenizer.convert_ids_to_tokens(int(flat[np.isin(flat, unwanted)][0]))
            raise UsageError(
                f"The text holds {token!r}, of which the tokenizer ({type(tokenizer).__name__}) makes a control token even"
                " as text. Remove it from the text, or give `--parse_special_tokens`."
            )
    return encoded


def end_of_text_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the token that ends every document.

    Raises:
        UsageError: the tokenizer has none.
    """
    if not isinstance(tokenizer.eos_token_id, int):
        raise UsageError(
            f"`tokenizer` must have an `eos_token_id`, which ends every document, but it is {tokenizer.eos_token_id!r}. "
            "Set `tokenizer.eos_token` to a token of its vocabulary."
        )
    return tokenizer.eos_token_id


def vocabulary_limit(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> int | None:
    """`vocab_size`, if the tokenizer has ids that the model does not have, so that texts must be checked; else None."""
    return vocab_size if max(tokenizer.get_vocab().values(), default=0) >= vocab_size else None


def check_token_id(argument: str, token_id: int, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Refuse a token that is put before or behind every document, and that the model does not have."""
    if token_id >= vocab_size:
        token = tokenizer.convert_ids_to_tokens(token_id)
        raise UsageError(
            f"`tokenizer.{argument}` must be below the model's `vocab_size` ({vocab_size}), but it is {token_id}"
            f" ({token!r}), and stands at every document. Use the tokenizer that belongs to the model."
        )


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Special tokens by what is written for them. Those without brackets (a line break, say) are also ordinary text."""
    named = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    added = {str(token): number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    found = {token: number for token, number in (named | added).items() if number is not None}
    return {token: number for token, number in found.items() if len(token) > 2 and token[0] in "<["}


def _refuse_written(token: str, token_id: int, vocab_size: int, texts: Sequence[str]) -> None:
    for text in texts:
        at = text.find(token)
        if at >= 0:
            raise _beyond(token, token_id, vocab_size, text[max(0, at - SHOWN) : at + len(token) + SHOWN])


def _beyond(token: str, token_id: int, vocab_size: int, place: str = "") -> UsageError:
    place = f", in {place!r}" if place else ""
    return UsageError(
        f"The text must only give ids below the model's `vocab_size` ({vocab_size}), but it holds {token!r}, which has id"
        f" {token_id} in the tokenizer{place}. Remove it from the text, or use the tokenizer that belongs to the model."
    )


def document_positions(lengths: np.ndarray) -> np.ndarray:
    """[sum of lengths] int32: 0, 1, ... within every document."""
    ends = np.cumsum(lengths)
    return (np.arange(lengths.sum()) - np.repeat(ends - lengths, lengths)).astype(np.int32)


def restart_positions(positions: np.ndarray) -> np.ndarray:
    """Let the first document of a sample, which may have begun in the sample before, start at 0."""
    borders = np.flatnonzero(positions[1:] == 0) + 1
    first = borders[0] if len(borders) else len(positions)
    return np.concatenate([positions[:first] - positions[0], positions[first:]])
