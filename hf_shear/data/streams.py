"""Domains that are streams: read in their own order, never as a whole, and resumed from a position.

Shapes: S = tokens of a sample.

A stream is dealt to shares, one or more per process. A share is read without end, pass after pass, as pairs of a sample
and a position: a small JSON-able value from which reading goes on with the very next sample. Where there are at least as
many shards (files) as shares, a share has shards of its own; else several shares read one shard and take turns at its
rows. A pass shuffles the shards within a share, so that no sample ever changes its share.
"""

from __future__ import annotations

import copy
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core import UsageError
from .documents import TOKENIZE_BATCH, document_positions, encode_texts, end_of_text_id, restart_positions

if TYPE_CHECKING:
    from datasets import IterableDataset
    from transformers import PreTrainedTokenizerBase
    from typing_extensions import TypeIs

COLUMNS = ("input_ids", "position_ids")  # of a packed sample


class PackedStream:
    """A stream of documents that is tokenised and packed while it is read.

    The samples of a share are those that `pack_domains` would cut from its documents in their order; the incomplete
    piece at the end of a pass is dropped. A position names the document in which the next sample begins, and the token:
    the remainder of a document is not stored, but read again.

    Args:
        documents: has the column `text`, one document per row.
        tokenizer: needs an `eos_token_id`. A copy of it is kept, as threads may not share one that others change.
        max_length: S.
        block_diagonal: also give `position_ids` (see `pack_domains`).
        parse_special_tokens, vocab_size: as for `hf_shear.data.documents.encode_texts`.
    """

    def __init__(
        self,
        documents: IterableDataset,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        *,
        block_diagonal: bool = False,
        parse_special_tokens: bool = False,
        vocab_size: int | None = None,
    ) -> None:
        self.dataset = documents
        self.tokenizer = copy.deepcopy(tokenizer)
        self.max_length = max_length
        self.block_diagonal = block_diagonal
        self.parse_special_tokens, self.vocab_size = parse_special_tokens, vocab_size
        self._encode([""])  # fast tokenizers switch truncation and padding off in their first call

    def __repr__(self) -> str:
        return f"PackedStream({self.dataset!r}, max_length={self.max_length})"

    def samples(self, share: IterableDataset, state: dict | None) -> Iterator[tuple[dict[str, np.ndarray], dict]]:
        """One pass of a share from `state` on (`None`: its beginning): samples, and the states after them.

        Counted from the first token that is not yet given: `ends` of the documents read, each with the state of the
        share after it, where the next document begins.
        """
        documents, token = (state["documents"], state["token"]) if state else (None, 0)
        if documents is not None:
            share.load_state_dict(documents)
        size = self.max_length
        ids, positions = np.zeros(0, np.int32), np.zeros(0, np.int32)
        begun = deque([(-token, documents)])  # where documents begin, and the states before them
        for texts, states in _document_batches(share):
            encoded = self._encode(texts)
            lengths = np.array([len(document) for document in encoded])
            new = begun[-1][0] + np.cumsum(lengths)
            given = len(ids) - begun[-1][0]  # tokens of the first new document that earlier samples hold
            ids = np.concatenate([ids, np.concatenate(encoded, dtype=np.int32)[given:]])
            positions = np.concatenate([positions, document_positions(lengths)[given:]])
            begun.extend(zip(new.tolist(), states, strict=True))
            end = len(ids) // size * size
            for start in range(0, end, size):
                sample = {"input_ids": ids[start : start + size]}
                if self.block_diagonal:
                    sample["position_ids"] = restart_positions(positions[start : start + size])
                while len(begun) > 1 and begun[1][0] <= start + size:
                    begun.popleft()
                yield sample, {"documents": begun[0][1], "token": start + size - begun[0][0]}
            ids, positions = ids[end:], positions[end:]
            begun = deque((begin - end, before) for begin, before in begun)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        options = {"parse_special_tokens": self.parse_special_tokens, "vocab_size": self.vocab_size}
        end = end_of_text_id(self.tokenizer)
        return [[*ids, end] for ids in encode_texts(texts, self.tokenizer, **options)]


class SampleStream:
    """A stream of samples that are packed already.

    Args:
        samples: has the column `input_ids` and, where documents are separate, `position_ids`.
    """

    def __init__(self, samples: IterableDataset) -> None:
        self.dataset = samples

    def samples(self, share: IterableDataset, state: dict | None) -> Iterator[tuple[dict[str, np.ndarray], dict]]:
        """One pass of a share from `state` on (`None`: its beginning): samples, and the states after them."""
        if state is not None:
            share.load_state_dict(state)
        length = None
        for row in share:
            sample = {name: np.asarray(row[name], dtype=np.int32) for name in COLUMNS if name in row}
            if "input_ids" not in sample:
                raise UsageError(f"Its samples must have the column 'input_ids', but they have {sorted(row)}.")
            length = len(sample["input_ids"]) if length is None else length
            if len(sample["input_ids"]) != length:
                raise UsageError(
                    f"Its samples must be of one length, but one has {len(sample['input_ids'])} tokens and others have"
                    f" {length}. Pack all with one `max_length`."
                )
            yield sample, share.state_dict()


def is_stream(dataset: Any) -> TypeIs[PackedStream | IterableDataset]:
    """Whether a domain's data are a stream: a `PackedStream`, or a `datasets.IterableDataset` of samples or text."""
    package = sys.modules.get("datasets")  # what is its data set has imported it; torch's own do without
    return isinstance(dataset, PackedStream) or (package is not None and isinstance(dataset, package.IterableDataset))


def first_sample(dataset: Any) -> Mapping[str, Any]:
    """The first sample of a data set or stream; nothing of a stream is consumed by it.

    Raises:
        ValueError: if the stream is empty.
    """
    if not is_stream(dataset):
        return dataset[0]
    stream = as_stream(dataset)
    for sample, _ in stream.samples(copy.copy(stream.dataset), None):
        return sample
    raise UsageError("The stream has no sample.")


def as_stream(dataset: PackedStream | IterableDataset) -> PackedStream | SampleStream:
    """What reads the samples of a stream."""
    return dataset if isinstance(dataset, PackedStream) else SampleStream(dataset)


def read_share(
    stream: PackedStream | SampleStream, index: int, num_shares: int, position: Mapping | None
) -> Iterator[tuple[dict[str, np.ndarray], dict]]:
    """The samples of one share from a position on, without end, and the position after each.

    Args:
        stream: what is read.
        index, num_shares: which of how many disjoint shares.
        position: as yielded before for the same share; `None` is the beginning. Reading goes on with the sample after
            it, at the cost of reading again at most the shard that it lies in.

    Yields:
        (sample, {"pass": passes ended before it, "state": place within the pass}).

    Raises:
        ValueError: if a whole pass holds no sample.
    """
    share = _share(stream.dataset, index, num_shares)
    number, state = (0, None) if position is None else (position["pass"], position["state"])
    while True:
        share.set_epoch(number)  # from the second pass on, the shards of a share are shuffled
        began_anew, is_empty = state is None, True
        for sample, after in stream.samples(share, state):
            is_empty = False
            yield sample, {"pass": number, "state": after}
        if began_anew and is_empty:
            raise UsageError(
                f"Share {index + 1} of {num_shares} holds not one sample. Give the stream more text or more files, or"
                " read it with fewer processes."
            )
        number, state = number + 1, None


def _share(dataset: IterableDataset, index: int, num_shares: int) -> IterableDataset:
    """Shards of its own; or, where there are fewer shards than shares, every so manieth row of one shard."""
    from datasets.distributed import split_dataset_by_node

    if getattr(dataset, "_distributed", None) is not None:
        raise UsageError("The stream is split by node already. Give the whole of it: each process takes its own share.")
    if dataset.num_shards >= num_shares:
        return dataset.shard(num_shares, index, contiguous=False)
    shard = index % dataset.num_shards
    sharers = range(shard, num_shares, dataset.num_shards)
    share = dataset.shard(dataset.num_shards, shard, contiguous=False)
    return share if len(sharers) == 1 else split_dataset_by_node(share, sharers.index(index), len(sharers))


def _document_batches(share: IterableDataset) -> Iterator[tuple[list[str], list[dict]]]:
    """Some documents at a time: their texts, and the state of the share after each."""
    texts, states = [], []
    for row in share:
        if not isinstance(row.get("text"), str):
            found = {name: type(value).__name__ for name, value in row.items()}
            raise UsageError(
                f"Its documents must have a column 'text' of strings, but one has {found}. Rename or convert the column"
                " (`rename_column`), or leave documents without a text out (`filter`)."
            )
        texts.append(row["text"])
        states.append(share.state_dict())
        if len(texts) == TOKENIZE_BATCH:
            yield texts, states
            texts, states = [], []
    if texts:
        yield texts, states
