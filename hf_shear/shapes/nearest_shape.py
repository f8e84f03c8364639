"""Find the shape nearest to one that will not do, so that an error can name it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from ..core import SHAPE_NAMES
from .model_shape import ModelShape
from .shape_config import ShapeAcceptance

UNNAMED_WEIGHT = 0.5
"""How much a change counts of a size that the user did not name: half of one that they did."""

HARDWARE_MULTIPLES = (128, 64, 8)
"""Hidden sizes that the tiles of accelerators are made for, best first: those of `shape_for_budget`, and 64."""


def nearest_shape(
    requested: Mapping[str, Any],
    named: Collection[str],
    source: ModelShape,
    acceptance: ShapeAcceptance,
    keep: Collection[str] = (),
) -> dict[str, int] | None:
    """The allowed sizes with the smallest sum of changes to `requested`, each in units of the source's size.

    Sizes out of range are first moved into it. Of equally near shapes the larger one is taken. A hidden size
    that the user did not name stays a multiple of the first of `HARDWARE_MULTIPLES` that divides the source's,
    however far the heads must move for that, unless no allowed shape has such a hidden size.

    Args:
        requested: the five sizes, of any value or type.
        named: the sizes that the user gave; changes of the others count `UNNAMED_WEIGHT`.
        keep: sizes that must not change (once in range).

    Returns:
        The five sizes, or None if none are allowed with `keep` unchanged.
    """
    wanted = {name: _into_range(requested[name], getattr(source, name)) for name in SHAPE_NAMES}

    def cost(name: str, value: int) -> float:
        if value != wanted[name] and name in keep:
            return math.inf
        weight = 1.0 if name in named else UNNAMED_WEIGHT
        return weight * abs(value - wanted[name]) / getattr(source, name)

    multiple = 1 if "hidden_size" in named else _hardware_multiple(source.hidden_size)
    best = _cheapest(wanted["hidden_size"], multiple, source, acceptance, cost)
    if best is None and multiple > 1:
        best = _cheapest(wanted["hidden_size"], 1, source, acceptance, cost)
    return None if best is None else {**wanted, **best}


def _cheapest(
    hidden_size_wanted: int,
    multiple: int,
    source: ModelShape,
    acceptance: ShapeAcceptance,
    cost: Callable[[str, int], float],
) -> dict[str, int] | None:
    """The accepted hidden size, a multiple of `multiple`, heads and key/value heads of least finite cost, if any."""
    heads_by_cost = sorted(
        (cost("num_attention_heads", heads) + cost("num_key_value_heads", kv_heads), -heads, -kv_heads)
        for heads, kv_heads in _allowed_heads(source)
    )
    best, best_cost = None, math.inf
    for heads_cost, heads, kv_heads in heads_by_cost:
        for hidden_size in _outward(hidden_size_wanted, source.hidden_size, multiple):
            total = heads_cost + cost("hidden_size", hidden_size)
            if total >= best_cost:
                break
            if acceptance.refusal(hidden_size, -heads, -kv_heads) is None:
                best, best_cost = (hidden_size, -heads, -kv_heads), total
                break
    names = ("hidden_size", "num_attention_heads", "num_key_value_heads")
    return None if best is None else dict(zip(names, best, strict=True))


def _hardware_multiple(hidden_size: int) -> int:
    """The first of `HARDWARE_MULTIPLES` that divides the hidden size; 1 if none does."""
    return next((multiple for multiple in HARDWARE_MULTIPLES if hidden_size % multiple == 0), 1)


def _allowed_heads(source: ModelShape) -> Iterator[tuple[int, int]]:
    """All (heads, key/value heads) that a target may have: they divide, and no group grows."""
    for kv_heads in range(1, source.num_key_value_heads + 1):
        for queries in range(1, source.queries_per_group + 1):
            yield kv_heads * queries, kv_heads


def _outward(start: int, largest: int, step: int) -> Iterator[int]:
    """start, start + step, start - step, start + 2 step, ... within 1 to `largest`."""
    yield start
    for distance in range(step, largest, step):
        for value in (start + distance, start - distance):
            if 1 <= value <= largest:
                yield value


def _into_range(value: Any, largest: int) -> int:
    """The whole number in 1 to `largest` that is nearest to `value`; `largest` where `value` is no number."""
    try:
        number = largest if isinstance(value, bool) else round(float(value))
    except (TypeError, ValueError, OverflowError):
        number = largest
    return min(max(number, 1), largest)
