"""A digest of packed samples by what they hold, wherever and however they are stored."""

from __future__ import annotations

import hashlib
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from .streams import first_sample, is_stream

_BATCH = 4096  # samples read at once
_LOOKED_AT = 1024  # samples, evenly spaced, of columns that cost more to read than tokens
_WHOLE = ("input_ids", "position_ids")
_known: WeakKeyDictionary[Any, str] = WeakKeyDictionary()  # a run's stages train on the same samples


def samples_digest(dataset: Any) -> str:
    """The SHA-256 of a domain's samples, in hexadecimal digits.

    It covers every token and position of a packed data set, in order (about 1 GB a second, or 250 million tokens). Of
    other columns, such as stored teacher logits, and of a data set that is not of ``datasets``, it covers 1,024 samples,
    evenly spaced, and how many there are. Of a stream, which is read once, it covers the first sample.

    Args:
        dataset: packed samples (``pack_domains``), a stream of them, or anything with ``__len__`` and ``__getitem__``.
    """
    try:
        found = _known.get(dataset)
    except TypeError:  # neither hashed nor referred to weakly, such as a list
        return _digest(dataset)
    if found is None:
        found = _known[dataset] = _digest(dataset)
    return found


def _digest(dataset: Any) -> str:
    digest = hashlib.sha256()
    if is_stream(dataset):
        _add_sample(digest, first_sample(dataset))
        return digest.hexdigest()
    digest.update(f"{len(dataset)} samples".encode())
    others = dataset
    if hasattr(dataset, "with_format"):  # of `datasets`
        whole = [name for name in _WHOLE if name in dataset.column_names]
        for name in whole:
            _add_column(digest, name, dataset.select_columns([name]).with_format("arrow"))
        others = dataset.remove_columns(whole).with_format("numpy")
        if not others.column_names:
            return digest.hexdigest()
    for index in range(0, len(others), -(-len(others) // _LOOKED_AT)):
        _add_sample(digest, others[index])
    return digest.hexdigest()


def _add_column(digest, name: str, rows) -> None:
    """All values of a column of lists of whole numbers, and where each list ends."""
    digest.update(name.encode())
    for start in range(0, len(rows), _BATCH):
        lists = rows[start : start + _BATCH].combine_chunks().column(name).chunk(0)  # the same however it was stored
        digest.update(np.ascontiguousarray(lists.value_lengths(), dtype=np.int32))
        digest.update(np.ascontiguousarray(lists.flatten(), dtype=np.int32))


def _add_sample(digest, sample) -> None:
    for name in sorted(sample):
        values = np.ascontiguousarray(sample[name])
        if values.dtype.kind in "iu":  # equal numbers are equal, however wide
            values = values.astype(np.int64)
        digest.update(f"{name} {values.dtype} {values.shape}".encode())
        digest.update(values.tobytes())
