"""Calibration text that is also the evaluation text: scores would fit what they are judged by."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import numpy as np
from torch import Tensor

WINDOW = 32  # tokens: long enough that unrelated texts share none
LARGEST_SHARE = 0.01  # of the evaluation's windows; corpora repeat some of their text by themselves
_FACTOR = np.uint64(6364136223846793005)  # Knuth's multiplier for numbers of 64 bits


def shared_share(calibration: Iterable[Sequence[int] | Tensor], evaluation: Iterable[Sequence[int] | Tensor]) -> float:
    """Share of the evaluation's windows of ``WINDOW`` tokens that stand somewhere in the calibration text.

    Windows are compared by 64-bit digests at every offset, so that the same text packed otherwise is found.

    Args:
        calibration, evaluation: token ids of each sample; rows of a tensor will do.
    """
    known = [_digests(np.asarray(sample), 1) for sample in calibration]
    asked = [_digests(np.asarray(sample), WINDOW) for sample in evaluation]
    known, asked = (np.concatenate(digests or [np.empty(0, np.uint64)]) for digests in (known, asked))
    return float(np.isin(asked, known).mean()) if len(asked) else 0.0


def warn_of_shared_text(
    calibration: Iterable[Sequence[int] | Tensor], evaluation: Iterable[Sequence[int] | Tensor]
) -> None:
    """Warn where more of the evaluation text stands in the calibration text than ``LARGEST_SHARE``."""
    share = shared_share(calibration, evaluation)
    if share > LARGEST_SHARE:
        warnings.warn(
            f"{share:.0%} of the evaluation text is also calibration text: units are chosen by what they are judged by,"
            " and the loss will look lower than on new text. Hold the evaluation text out.",
            stacklevel=2,
        )


def _digests(tokens: np.ndarray, stride: int) -> np.ndarray:
    if len(tokens) < WINDOW:
        return np.empty(0, np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(tokens.astype(np.uint64) + np.uint64(1), WINDOW)[::stride]
    total = np.zeros(len(windows), np.uint64)
    for place in range(WINDOW):  # sums wrap around at 2^64
        total = (total ^ windows[:, place]) * _FACTOR
        total ^= total >> np.uint64(29)
    return total
