"""Documents to fixed-length samples of token ids.

Shapes: S = `max_length`, the tokens of one sample.

Each document is encoded without special tokens and ended by one EOS token: no BOS is put before documents,
none is doubled, and the text that a sample starts in the middle of needs none. A control token that is written
in a document stays text. The documents of a domain are
concatenated in order and cut every S tokens; the last, incomplete piece is dropped. As in the paper (arXiv
2310.06694, section 3.1) attention crosses document borders by default; `block_diagonal=True` confines it to
the document.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from ..core import UsageError, check_ranges
from .chat import MESSAGES, TEXT, chat_documents, column_names
from .documents import (
    TOKENIZE_BATCH,
    check_token_id,
    document_positions,
    encode_texts,
    end_of_text_id,
    restart_positions,
    vocabulary_limit,
)
from .streams import PackedStream, is_stream

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, DatasetDict, IterableDataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

PACK_BATCH = 256  # documents concatenated at once
PACKING_VERSION = 1  # part of the cache's key: raise it when the same documents give other samples


@overload
def pack_domains(
    domains: Mapping[Any, Dataset],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    block_diagonal: bool = False,
    num_proc: int | None = None,
    parse_special_tokens: bool = False,
    vocab_size: int | None = None,
) -> DatasetDict: ...


@overload
def pack_domains(
    domains: Mapping[Any, Dataset | IterableDataset],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    block_diagonal: bool = False,
    num_proc: int | None = None,
    parse_special_tokens: bool = False,
    vocab_size: int | None = None,
) -> DatasetDict | dict[str, Dataset | PackedStream]: ...


def pack_domains(
    domains: Mapping[Any, Dataset | IterableDataset],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    block_diagonal: bool = False,
    num_proc: int | None = None,
    parse_special_tokens: bool = False,
    vocab_size: int | None = None,
) -> DatasetDict | dict[str, Dataset | PackedStream]:
    """Tokenise every domain's documents and pack them into samples of exactly `max_length` tokens.

    Both steps are cached by `datasets`: the same documents, tokenizer and arguments are read back, not
    redone. A stream of documents (`datasets.IterableDataset`, from `load_domains(..., streaming=True)` or
    `load_dataset(..., streaming=True)`) is packed while it is read, and nothing of it is kept.

    Args:
        domains: name -> data set or stream with the column `text`, one document per row; or with `messages`, one
            conversation per row, which goes through the tokenizer's chat template.
        tokenizer: needs an `eos_token_id`.
        max_length: S.
        block_diagonal: also give `position_ids`, which restart at 0 at every document. transformers (eager,
            sdpa, flex and flash attention) reads restarted positions as separate sequences, and lets no token
            attend across them, as long as the model gets no `attention_mask` and no cache (`use_cache=False`,
            as in the Trainer). A document that is cut by a sample's end starts afresh, at position 0, in the
            next one.
        num_proc: processes for tokenising.
        parse_special_tokens: let control tokens that are written in a document (`</s>`) be such tokens, not text.
        vocab_size: of the model, if ids are to be checked. What counts is the ids that the text gives, and EOS; a tokenizer
            may have others beyond it.

    Returns:
        name -> `Dataset` with `input_ids` [S] int32 (so ids above 65,535 survive) and, if `block_diagonal`,
        `position_ids` [S] int32. In a plain dict, with a `PackedStream` for each stream, if there is any.

    Raises:
        ValueError: for a tokenizer without EOS, `max_length` below 2, a domain with fewer than S tokens, a document that
            is no string, or an id of `vocab_size` or more.
    """
    from datasets import DatasetDict

    eos_token_id = end_of_text_id(tokenizer)
    check_ranges({"max_length": max_length, "num_proc": num_proc})
    encoding: dict[str, Any] = {
        "tokenizer": tokenizer,
        "parse_special_tokens": parse_special_tokens,
        "vocab_size": None,
    }
    if vocab_size is not None:
        check_token_id("eos_token_id", eos_token_id, tokenizer, vocab_size)
        encoding["vocab_size"] = vocabulary_limit(tokenizer, vocab_size)
    packed: dict[Any, Dataset | PackedStream] = {}
    for name, dataset in domains.items():
        columns, options = column_names(dataset), dict(encoding)
        if MESSAGES in columns and TEXT not in columns:
            dataset = chat_documents(name, dataset, tokenizer)
            options["parse_special_tokens"] = True
        packed[name] = (
            PackedStream(dataset, max_length=max_length, block_diagonal=block_diagonal, **options)
            if is_stream(dataset)
            else _pack_domain(name, dataset, options, max_length, block_diagonal, num_proc)
        )
    whole = {name: data for name, data in packed.items() if not isinstance(data, PackedStream)}
    return DatasetDict(whole) if len(whole) == len(packed) else packed


def enough_documents(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, num_tokens: int, *, parse_special_tokens: bool = False
) -> Dataset:
    """The first documents, as many as give ``num_tokens`` tokens; all, if they give fewer."""
    found, texts = 0, dataset.with_format(None)
    for start in range(0, len(dataset), TOKENIZE_BATCH):
        batch = texts[start : start + TOKENIZE_BATCH]["text"]
        found += sum(len(ids) + 1 for ids in encode_texts(batch, tokenizer, parse_special_tokens=parse_special_tokens))
        if found >= num_tokens:
            return dataset.select(range(min(start + TOKENIZE_BATCH, len(dataset))))
    return dataset


def check_max_length(max_length: int, max_position_embeddings: int) -> None:
    """Check that a sample of `max_length` tokens fits a model's positions.

    Raises:
        ValueError: if it does not.
    """
    if max_length > max_position_embeddings:
        raise UsageError(
            "`max_length` must be at most the model's `max_position_embeddings` "
            f"({max_position_embeddings}), but it is {max_length}. Lower it to {max_position_embeddings} or "
            "less."
        )


def _pack_domain(
    name: str,
    dataset: Dataset,
    encoding: dict[str, Any],
    max_length: int,
    block_diagonal: bool,
    num_proc: int | None,
) -> Dataset:
    """One domain: tokenise with `map`, then cut with a generator, as samples cross batches."""
    from datasets import Dataset, Features, Sequence, Value
    from datasets.fingerprint import Hasher

    if "text" not in dataset.column_names:
        raise UsageError(
            f"Every domain must have a column 'text' (or '{MESSAGES}', of conversations), but domain {name!r} has"
            f" {dataset.column_names}. Rename it."
        )
    try:
        tokenized = dataset.with_format(None).map(
            _encode_documents,
            batched=True,
            batch_size=TOKENIZE_BATCH,
            remove_columns=dataset.column_names,
            features=Features({"input_ids": Sequence(Value("int32"))}),
            fn_kwargs=encoding,
            num_proc=None if num_proc is None else max(1, min(num_proc, len(dataset))),
            desc=f"Tokenising {name}",
        )
    except UsageError as error:
        raise UsageError(f"Domain {name!r}: {error}") from error
    num_tokens = sum(int(_lengths(ids).sum()) for ids in _batches(tokenized))
    if num_tokens < max_length:
        raise UsageError(
            f"Every domain must hold at least `max_length` ({max_length}) tokens, but the text of domain {name!r} "
            f"given here (the whole of it, or its train or held-out part) holds {num_tokens}. Lower `max_length`, "
            "add text to the domain, change `held_out_fraction` (larger for a longer held-out part, smaller for a "
            "longer train part), or remove the domain."
        )
    num_samples, num_dropped = divmod(num_tokens, max_length)
    logger.info(f"Domain {name!r}: {num_samples} samples of {max_length} tokens, {num_dropped} tokens dropped.")
    columns = ["input_ids", "position_ids"] if block_diagonal else ["input_ids"]
    arguments = {"tokenized": tokenized, "max_length": max_length, "block_diagonal": block_diagonal}
    return Dataset.from_generator(
        _samples,
        features=Features({column: Sequence(Value("int32"), length=max_length) for column in columns}),
        gen_kwargs=arguments,
        fingerprint=Hasher.hash([PACKING_VERSION, tokenized._fingerprint, max_length, block_diagonal]),
    )


def _encode_documents(batch: dict[str, list[str]], tokenizer: PreTrainedTokenizerBase, **options) -> dict[str, list]:
    """The ids of each document, and one EOS."""
    end = end_of_text_id(tokenizer)
    return {"input_ids": [[*ids, end] for ids in encode_texts(batch["text"], tokenizer, **options)]}


def _batches(tokenized: Dataset) -> Iterator[pa.ListArray]:
    """The column `input_ids`, some documents at a time."""
    table: Any  # pyarrow has no types
    for table in tokenized.with_format("arrow").iter(batch_size=PACK_BATCH):
        yield from table.column("input_ids").chunks


def _lengths(ids: pa.ListArray) -> np.ndarray:
    """[documents] int: the tokens of each."""
    return np.diff(ids.offsets.to_numpy())


def _samples(tokenized: Dataset, max_length: int, block_diagonal: bool) -> Iterator[dict[str, np.ndarray]]:
    """Cut the concatenated documents every `max_length` tokens."""
    rest_ids, rest_positions = np.zeros(0, np.int32), np.zeros(0, np.int32)
    for chunk in _batches(tokenized):
        ids = np.concatenate([rest_ids, chunk.flatten().to_numpy(zero_copy_only=False)])
        positions = np.concatenate([rest_positions, document_positions(_lengths(chunk))])
        end = len(ids) // max_length * max_length
        for start in range(0, end, max_length):
            sample = {"input_ids": ids[start : start + max_length]}
            if block_diagonal:
                sample["position_ids"] = restart_positions(positions[start : start + max_length])
            yield sample
        rest_ids, rest_positions = ids[end:], positions[end:]
