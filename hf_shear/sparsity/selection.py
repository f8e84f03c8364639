"""Which structures go: those that cost least over all layers together, and never more of them than the budget allows."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_FINITE = 0x7F7FFFFF  # the bits of the largest float32


def cheapest(costs: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Mark the ``count`` smallest finite costs over all tensors: exactly that many, ties in the order of layers.

    Nothing is sorted or concatenated: the threshold is found by bisection on the bits of float32, in 31 counts over all
    costs, so that the costs of billions of entries can lie where they are.

    Args:
        costs: float32, not negative; infinite where there is nothing (more) to remove.
        count: at most as many as there are finite costs.

    Returns:
        bool tensors of the same shapes.
    """
    bits = {name: cost.contiguous().view(torch.int32) for name, cost in costs.items()}  # in the order of the values
    low, high = -1, LARGEST_FINITE  # at most `low`: too few; at most `high`: enough
    while high - low > 1:
        middle = (low + high) // 2
        enough = sum(int((bit <= middle).sum()) for bit in bits.values()) >= count
        low, high = (low, middle) if enough else (middle, high)
    chosen, missing = {}, count - sum(int((bit < high).sum()) for bit in bits.values())
    for name, bit in bits.items():
        chosen[name] = bit < high
        ties = (bit == high).flatten().nonzero().flatten()[:missing]
        chosen[name].view(-1)[ties] = True
        missing -= len(ties)
    return chosen


def cheapest_rows_and_columns(
    costs: tuple[dict[str, Tensor], dict[str, Tensor]],
    kept: tuple[dict[str, Tensor], dict[str, Tensor]],
    budget: int,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The rows and columns that stay: as many of the cheapest go as take at most ``budget`` entries away together.

    An entry that lies in a removed row and in a removed column counts once. The order is that of the costs alone; the
    first that does not fit any more ends it.

    Args:
        costs: of rows [R] and of columns [C], by layer; infinite where they must not be removed.
        kept: bool, of the same shapes: those that have not been removed before.
        budget: entries that may be removed, beside those removed before.

    Returns:
        ``kept`` without those that go now.
    """
    names = list(costs[0])
    keys = [(kind, name) for name in names for kind in (0, 1)]  # rows and columns of a layer side by side
    lengths = [len(kept[kind][name]) for kind, name in keys]
    open_now = torch.cat([kept[kind][name].cpu() for kind, name in keys])
    values = torch.cat([costs[kind][name].double().cpu() for kind, name in keys])
    values = values.masked_fill(~open_now, torch.inf)
    owners = torch.repeat_interleave(torch.arange(len(keys)), torch.tensor(lengths))
    order = values.argsort(stable=True)[: int(values.isfinite().sum())]
    start = torch.bincount(owners[open_now], minlength=len(keys))

    def num_removed(length: int) -> int:
        left = start - torch.bincount(owners[order[:length]], minlength=len(keys))
        return int((start[::2] * start[1::2]).sum() - (left[::2] * left[1::2]).sum())

    low, high = 0, len(order) + 1  # the first `low` fit, the first `high` do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if num_removed(middle) <= budget else (low, middle)
    open_now[order[:low]] = False
    stays: tuple[dict, dict] = ({}, {})
    for (kind, name), part in zip(keys, open_now.split(lengths), strict=True):
        stays[kind][name] = part.to(kept[kind][name].device)
    return stays
