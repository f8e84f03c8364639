"""Confidence intervals over documents: the ratio of two sums, and the difference of two such ratios.

A document is the unit that is drawn: its tokens are no independent observations. Shapes: N documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..core import UsageError, check_ranges

NUM_RESAMPLES = 1000
RESAMPLE_SEED = 0
COVERAGE = 0.95  # share of resamples within the interval
_CHUNK = 2_000_000  # weights drawn at once: bounds memory with many documents


class Estimate(NamedTuple):
    """A value and its interval, None where a single document says nothing of how documents differ."""

    value: float
    interval: list[float] | None


def ratio_of_sums(
    numerators: np.ndarray, denominators: np.ndarray, num_resamples: int = NUM_RESAMPLES, seed: int = RESAMPLE_SEED
) -> Estimate:
    """sum(numerators) / sum(denominators) with a 95 % percentile bootstrap over documents.

    Args:
        numerators, denominators: [N] of each document, such as nats and tokens.
        num_resamples, seed: draws of N documents with replacement, and the seed of all of them.

    Raises:
        ValueError: there are no documents, the shapes differ, or all denominators are 0.
    """
    numerators, denominators = _checked(numerators, denominators)
    value = numerators.sum() / denominators.sum()
    return Estimate(float(value), _interval([(numerators, denominators)], num_resamples, seed))


def paired_difference(
    first: tuple[np.ndarray, np.ndarray],
    second: tuple[np.ndarray, np.ndarray],
    num_resamples: int = NUM_RESAMPLES,
    seed: int = RESAMPLE_SEED,
) -> Estimate:
    """second minus first, each a ratio of sums over the same documents, which are drawn together.

    Pairing removes what documents differ in and both models feel alike, so that the interval is narrower than that of
    either ratio.

    Args:
        first, second: (numerators, denominators) of one model each, [N] in the same order of documents.

    Raises:
        ValueError: as ``ratio_of_sums``, or the two have different numbers of documents.
    """
    first, second = _checked(*first), _checked(*second)
    if len(first[0]) != len(second[0]):
        raise UsageError(
            f"A paired difference needs the same documents, but there are {len(first[0])} and {len(second[0])}."
        )
    value = second[0].sum() / second[1].sum() - first[0].sum() / first[1].sum()
    return Estimate(float(value), _interval([second, first], num_resamples, seed))


def paired_mean_difference(
    pairs: Sequence[tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]],
    num_resamples: int = NUM_RESAMPLES,
    seed: int = RESAMPLE_SEED,
) -> Estimate:
    """The unweighted mean over domains of ``paired_difference``; documents are drawn within each domain.

    Args:
        pairs: (first, second) of each domain, as for ``paired_difference``.

    Returns:
        The interval is None where a domain has a single document.
    """
    pairs = [(_checked(*first), _checked(*second)) for first, second in pairs]
    values = [second[0].sum() / second[1].sum() - first[0].sum() / first[1].sum() for first, second in pairs]
    generator = np.random.default_rng(seed)
    drawn = [_drawn([second, first], num_resamples, generator) for first, second in pairs]
    mean = float(np.mean(values))
    if any(one is None for one in drawn):
        return Estimate(mean, None)
    shortest = min(len(one) for one in drawn if one is not None)
    return Estimate(mean, _percentiles(np.mean([one[:shortest] for one in drawn if one is not None], axis=0)))


def describe_interval(num_resamples: int = NUM_RESAMPLES, seed: int = RESAMPLE_SEED) -> str:
    """How intervals are made, for the protocol that stands next to them."""
    return f"{COVERAGE * 100:.0f} % bootstrap over documents, {num_resamples} resamples, seed {seed}"


def _checked(numerators, denominators) -> tuple[np.ndarray, np.ndarray]:
    numerators, denominators = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if numerators.ndim != 1 or numerators.shape != denominators.shape or not len(numerators):
        raise UsageError(
            "Numerators and denominators must be one number per document each, of at least one document, but their"
            f" shapes are {numerators.shape} and {denominators.shape}."
        )
    if not denominators.sum() > 0:
        raise UsageError("The documents hold no tokens or bytes to divide by. Give documents with text.")
    return numerators, denominators


def _interval(ratios: list[tuple[np.ndarray, np.ndarray]], num_resamples: int, seed: int) -> list[float] | None:
    """Percentiles of the ratio (or of the first minus the second) over resampled documents."""
    check_ranges({"num_resamples": num_resamples, "seed": seed})
    drawn = _drawn(ratios, num_resamples, np.random.default_rng(seed))
    return None if drawn is None else _percentiles(drawn)


def _drawn(
    ratios: list[tuple[np.ndarray, np.ndarray]], num_resamples: int, generator: np.random.Generator
) -> np.ndarray | None:
    """[num_resamples] ratios (or the first minus the second); None of a single document."""
    num_documents = len(ratios[0][0])
    if num_documents < 2:
        return None
    columns = np.stack([column for ratio in ratios for column in ratio], axis=1)  # [N, 2 or 4]
    even = np.full(num_documents, 1.0 / num_documents)
    per_chunk = max(1, _CHUNK // num_documents)
    values = []
    for start in range(0, num_resamples, per_chunk):
        size = min(per_chunk, num_resamples - start)
        # How often each document is drawn; the sums of a resample are then one product.
        sums = generator.multinomial(num_documents, even, size=size) @ columns
        sums = sums[(sums[:, 1::2] > 0).all(axis=1)]  # a resample of empty documents alone has no ratio
        drawn = sums[:, 0] / sums[:, 1]
        values.append(drawn if len(ratios) == 1 else drawn - sums[:, 2] / sums[:, 3])
    return np.concatenate(values)


def _percentiles(drawn: np.ndarray) -> list[float]:
    tail = (1 - COVERAGE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return [float(low), float(high)]
