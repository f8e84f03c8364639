"""Which texts share too much to lie on different sides of a train/held-out split.

A text is seen as its set of shingles, runs of `SHINGLE_WORDS` words. Two texts are near-duplicates when a good
part of the smaller one's shingles also occurs in the other (containment, which finds a copy inside a much larger
text, where Jaccard similarity would be small). Groups of near-duplicates are the connected components.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations
from zlib import crc32

import numpy as np

SHINGLE_WORDS = 8
"""Words in a shingle: long enough that two texts hardly share one by chance."""

MAX_TEXTS_PER_SHINGLE = 12
"""A shingle found in more texts than this is boilerplate (a licence, an option table) and links nothing."""

MIN_SHARED_SHINGLES = 24
"""Texts that share fewer shingles than this (about two sentences) are never near-duplicates."""

MIN_CONTAINMENT = 0.2
"""Share of the smaller text's shingles from which on two texts are near-duplicates. Lower, a single copied function
would join large packages in one Python version and not in the next, and move all their text to another side."""

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def shingles(text: str, cache: dict[str, int] | None = None) -> np.ndarray:
    """The set of the text's shingles as sorted 64-bit hashes, the same in every process and on every machine.

    Args:
        text: any text; only its words (letters, digits, underscore) count.
        cache: word -> hash, shared between calls to save time.
    """
    cache = {} if cache is None else cache
    words = re.findall(r"\w+", text)
    if len(words) < SHINGLE_WORDS:
        return np.empty(0, dtype=np.uint64)
    for word in set(words).difference(cache):
        cache[word] = crc32(word.encode("utf-8", "surrogatepass"))
    ids = np.fromiter((cache[word] for word in words), dtype=np.uint64, count=len(words))
    length = len(ids) - SHINGLE_WORDS + 1
    hashes = np.zeros(length, dtype=np.uint64)
    for offset in range(SHINGLE_WORDS):
        hashes = (hashes ^ ids[offset : offset + length]) * _MULTIPLIER  # wraps around at 2**64, as intended
        hashes ^= hashes >> np.uint64(29)
    return np.unique(hashes)


def shared_shingles(sets: Sequence[np.ndarray]) -> Counter[tuple[int, int]]:
    """(i, j) with i < j -> number of shingles in both; those in more than MAX_TEXTS_PER_SHINGLE do not count."""
    if not sets:
        return Counter()
    hashes = np.concatenate(sets)
    owners = np.repeat(np.arange(len(sets)), [len(one) for one in sets])
    order = np.argsort(hashes, kind="stable")
    hashes, owners = hashes[order], owners[order]
    starts = np.flatnonzero(np.concatenate([[len(hashes) > 0], hashes[1:] != hashes[:-1]]))
    lengths = np.diff(np.append(starts, len(hashes)))
    counts: Counter[tuple[int, int]] = Counter()
    linking = (lengths > 1) & (lengths <= MAX_TEXTS_PER_SHINGLE)
    for start, length in zip(starts[linking].tolist(), lengths[linking].tolist(), strict=True):
        counts.update(combinations(owners[start : start + length].tolist(), 2))
    return counts


def near_duplicates(texts: Sequence[str]) -> list[tuple[int, int, float]]:
    """All pairs (i, j, containment), i < j, of near-duplicate texts, in order."""
    cache: dict[str, int] = {}
    sets = [shingles(text, cache) for text in texts]
    pairs = []
    for (i, j), shared in sorted(shared_shingles(sets).items()):
        containment = shared / min(len(sets[i]), len(sets[j]))
        if shared >= MIN_SHARED_SHINGLES and containment >= MIN_CONTAINMENT:
            pairs.append((i, j, containment))
    return pairs


def merged_groups(names: Iterable[str], linked: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Name -> name of its group, the smallest name of its connected component (union-find)."""
    parent = {name: name for name in names}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for left, right in linked:
        first, second = sorted((root(left), root(right)))
        parent[second] = first
    return {name: root(name) for name in parent}
