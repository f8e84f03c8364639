"""Split a calibration batch, so that its samples need not fit into one forward."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor


def micro_batches(batch: dict[str, Tensor], size: int | None) -> Iterator[tuple[float, dict[str, Tensor]]]:
    """(share of the batch's samples, inputs) of each part.

    Args:
        batch: tensors [samples, length].
        size: samples per part; None: all at once.
    """
    num_samples = len(next(iter(batch.values())))
    for start in range(0, num_samples, size or num_samples):
        part = {name: tensor[start : start + (size or num_samples)] for name, tensor in batch.items()}
        yield len(next(iter(part.values()))) / num_samples, part
