"""Sums over processes that each saw a part of the calibration text."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from .moments import sum_over_ranks as sum_one


def sum_over_ranks(*sums: Tensor | Iterable[Tensor]) -> None:
    """Replace each tensor by its sum over all processes; nothing happens without a process group.

    All processes must come here, with tensors of the same shapes, and every mean be taken after it: a mean of sums over
    counts is the same whether processes share the text out or all read the same.
    """
    for item in sums:
        for tensor in (item,) if isinstance(item, Tensor) else item:
            sum_one(tensor)
