"""How far the loss of a shape rises at the cut, predicted from cuts of a single size each.

A few models are cut in one size alone, and judged. A curve through each size's rises gives the rise of every other value
of it, and a shape's rise is put together from those of its sizes. So some twelve cuts rank thousands of shapes, in no
time; what they rank first is then cut, and judged itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from scipy.interpolate import PchipInterpolator

from ..core import UsageError
from ..shapes import ModelShape, TargetShape

HEADS, HEAD_NAMES = "heads", ("num_attention_heads", "num_key_value_heads")
PARTS = ("hidden_size", "num_hidden_layers", HEADS, "intermediate_size")
"""What is cut alone. Heads and key/value heads count together, by the share of both that stays. Config classes that want
heads which divide the hidden size may refuse a narrower model with all heads: then it loses heads too, as few as it can."""
NUM_LEVELS = 3
"""Cuts of each part: the smallest value that a candidate has, and others evenly between it and the source's."""


def share_kept(part: str, shape: ModelShape, source: ModelShape) -> float:
    """Of the units of a part, those that a shape keeps."""
    if part != HEADS:
        return getattr(shape, part) / getattr(source, part)
    kept = shape.num_attention_heads + shape.num_key_value_heads
    return kept / (source.num_attention_heads + source.num_key_value_heads)


def single_cuts(config, shapes: Sequence[TargetShape], num_levels: int = NUM_LEVELS) -> dict[str, list[TargetShape]]:
    """By part, the shapes that lose of it alone, from the smallest value among ``shapes`` up; parts that nothing loses
    have none."""
    source, found = shapes[0].source, {}
    for part in PARTS:
        alone = {share_kept(part, one, source): one for one in _alone(config, part, shapes)}
        levels = sorted(share for share in alone if share < 1)
        if levels:
            wanted = [levels[0] + (1 - levels[0]) * step / num_levels for step in range(num_levels)]
            nearest = {min(levels, key=lambda share, at=at: abs(share - at)) for at in wanted}
            found[part] = [alone[share] for share in sorted(nearest)]
    return found


def _alone(config, part: str, shapes: Sequence[TargetShape]) -> Iterable[TargetShape]:
    names = HEAD_NAMES if part == HEADS else (part,)
    for sizes in sorted({tuple(getattr(shape, name) for name in names) for shape in shapes}):
        try:
            yield TargetShape.from_source(config, **dict(zip(names, sizes, strict=True)))
        except UsageError:
            if part == "hidden_size":
                of_this_width = (shape for shape in shapes if (shape.hidden_size,) == sizes)
                most = max(of_this_width, key=lambda shape: share_kept(HEADS, shape, shape.source))
                fewer_too = {name: getattr(most, name) for name in (part, *HEAD_NAMES)}
                yield TargetShape.from_source(config, **fewer_too)


class RiseForecast:
    """Rises of shapes from the rises of ``single_cuts``.

    Args:
        source: its rise is 0.
        measured: by part, pairs of a shape and its rise, in nats per token.

    Attributes:
        points: by part, the share of it that a single cut keeps, and the rise.
    """

    def __init__(self, source: ModelShape, measured: Mapping[str, Sequence[tuple[ModelShape, float]]]):
        self.source, self._curves, self.points = source, {}, {}
        for part in sorted(measured, key=lambda part: part == "hidden_size"):  # last: what its heads cost is taken off
            found = {share_kept(part, shape, source): rise - self(shape) for shape, rise in measured[part]}
            self.points[part] = sorted((found | {1.0: 0.0}).items())
            shares, rises = zip(*self.points[part], strict=True)
            falling = [max(rises[index:]) for index in range(len(rises))]  # fewer units are never better
            self._curves[part] = PchipInterpolator(shares, falling)

    def parts(self, shape: ModelShape) -> dict[str, float]:
        """The rise that each part of a shape causes alone, in nats per token."""
        return {part: float(curve(share_kept(part, shape, self.source))) for part, curve in self._curves.items()}

    def knows(self, shape: ModelShape) -> bool:
        """Whether no size lies below what was cut."""
        return all(
            share_kept(part, shape, self.source) >= points[0][0] for part, points in self.points.items()
        ) and all(share_kept(part, shape, self.source) == 1 for part in PARTS if part not in self.points)

    def __call__(self, shape: ModelShape) -> float:
        """The predicted rise: the sum of the parts' rises (model_cards/search.md)."""
        return math.fsum(self.parts(shape).values())
