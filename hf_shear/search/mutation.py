"""Layers with widths of their own, found by mutations that keep the parameter budget.

A search in the manner of EvoPress (arXiv 2410.14649, section 3), with widths in place of its levels of compression. One
shape is the parent. Each generation makes some children: one to three times, one part of a layer (its attention or its MLP)
gains levels and others lose some, or a whole part is dropped; what is then left of the budget goes to parts at random.
Children are cut from the source's statistics, compensated, and judged on held-out text by their divergence from the source,
in rounds: all on a small part of it, the best few on more. The last one becomes the parent if it is better on all of it.

Levels of an attention are numbers of query heads and key/value heads, those of an MLP numbers of neurons. The lowest level
is none of them: the layer then has no such part.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

from transformers import PretrainedConfig

from ..core import UsageError, tracked
from ..masks import ATTENTION, INTERMEDIATE, KEY_VALUE_HEAD, MLP, QUERY_HEAD, SUB_LAYERS
from ..shapes import ModelShape, PerLayerShape
from .grid import ShapeFilter, step_of

MOST_SWITCHES = 3
"""Of one child. As in EvoPress, the smaller of two draws counts, so that one switch is the most frequent."""
DROP = 0.1
"""Of switches, those that drop a whole attention or MLP."""
STEPS = (1, 2, 4)
"""Levels that a part gains in one switch, one of these at random."""
ROUNDS = ((8, 1 / 8), (2, 1 / 2), (1, 1.0))
"""Children that are judged, and the share of the held-out text: three passes over all of it."""
MOST_DRAWS = 80
"""For the children of one generation, of which some are refused or alike."""

Level = tuple[int, ...]
"""Query heads and key/value heads of an attention; neurons of an MLP."""
Place = tuple[int, str]
"""A layer, and its attention or its MLP."""
SIZES = {ATTENTION: ("num_heads", "num_key_value_heads"), MLP: ("num_neurons",)}
"""What a level says of a layer's part."""
GONE: dict[str, Level] = {part: (0,) * len(names) for part, names in SIZES.items()}
Judge = Callable[[PerLayerShape, float], float]
"""How bad a shape's cut is on a share of the held-out text."""


@dataclass(frozen=True, kw_only=True)
class Levels:
    """What the parts of layers may become, at one hidden size.

    Attributes:
        config: of the source.
        budget: parameters that no shape exceeds.
        of: by attention and MLP, all levels, rising; the first is to be gone.
        accepts: whether a shape is wanted.
    """

    config: PretrainedConfig
    budget: int
    of: dict[str, list[Level]]
    accepts: Callable[[PerLayerShape], bool]

    @classmethod
    def within(cls, config: PretrainedConfig, budget: int, wanted: ShapeFilter, kinds: Collection[str]) -> Levels:
        """Those that a filter leaves.

        Args:
            config: of the source.
            budget: parameters.
            wanted: filters; its ``accepts`` is asked of the shape that a candidate is padded to.
            kinds: of units that were ranked: others stay.
        """
        source = ModelShape.from_config(config)
        heads, widths = [(source.num_attention_heads, source.num_key_value_heads)], [source.intermediate_size]
        if KEY_VALUE_HEAD in kinds:
            numbers, fewest = wanted.sizes(source, "num_attention_heads"), source.queries_per_group
            heads = [
                (groups * queries, groups)
                for groups in wanted.sizes(source, "num_key_value_heads")
                for queries in range(1 if QUERY_HEAD in kinds else fewest, source.queries_per_group + 1)
                if groups * queries in numbers
            ]
        if INTERMEDIATE in kinds:
            widths = wanted.sizes(source, "intermediate_size", step_of(source.intermediate_size))
        fewest_layers = wanted.at_least.get("num_hidden_layers", 1)

        def accepts(shape: PerLayerShape) -> bool:
            try:
                padded = shape.padded(config)
            except UsageError:  # the config's class accepts no number of heads that is large enough
                return False
            return padded.num_hidden_layers >= fewest_layers and (wanted.accepts is None or not wanted.accepts(padded))

        levels: dict[str, list[Level]] = {ATTENTION: sorted(heads, key=_cost), MLP: [(width,) for width in widths]}
        of = {part: [GONE[part], *found] for part, found in levels.items()}
        return cls(config=config, budget=budget, of=of, accepts=accepts)

    def fits(self, shape: PerLayerShape) -> bool:
        """Whether a shape keeps the budget."""
        return shape.num_parameters(self.config) <= self.budget

    def snapped(self, shape: PerLayerShape, draw: random.Random) -> PerLayerShape:
        """A shape with every part at one of the levels: its own or the next below, and what that leaves given to parts."""
        for place in _places(shape):
            if _level(shape, place) not in self.of[place[1]]:
                shape = self.moved(shape, place, -1) or shape
        return self.filled(shape, draw)

    def child(self, parent: PerLayerShape, draw: random.Random) -> PerLayerShape | None:
        """A shape some switches away that fills the budget; None if what was drawn leads to none."""
        shape = parent
        for _ in range(min(draw.randint(1, MOST_SWITCHES), draw.randint(1, MOST_SWITCHES))):
            switched = self._dropped(shape, draw) if draw.random() < DROP else self._switched(shape, draw)
            shape = switched or shape
        return shape if shape != parent and self.fits(shape) and self.accepts(shape) else None

    def _dropped(self, shape: PerLayerShape, draw: random.Random) -> PerLayerShape | None:
        place = draw.choice([one for one in _places(shape) if not _is_gone(shape, one)])
        smaller = _changed(shape, place, GONE[place[1]])
        return None if smaller is None else self.filled(smaller, draw)

    def _switched(self, shape: PerLayerShape, draw: random.Random) -> PerLayerShape | None:
        places = _places(shape)
        draw.shuffle(places)
        gained = next((one for one in places if self.moved(shape, one, 1) is not None), None)
        if gained is None:
            return None
        for _ in range(draw.choice(STEPS)):
            shape = self.moved(shape, gained, 1) or shape
        for lost in (one for one in places if one != gained):
            while not self.fits(shape) and (smaller := self.moved(shape, lost, -1)) is not None:
                shape = smaller
            if self.fits(shape):
                return self.filled(shape, draw, spared=lost)
        return None

    def filled(self, shape: PerLayerShape, draw: random.Random, spared: Place | None = None) -> PerLayerShape:
        """With what is left of the budget given to parts at random, a level at a time; what is gone stays so."""
        places = [place for place in _places(shape) if place != spared and not _is_gone(shape, place)]
        while places:
            place = draw.choice(places)
            larger = self.moved(shape, place, 1)
            if larger is not None and self.fits(larger):
                shape = larger
            else:
                places.remove(place)
        return shape

    def moved(self, shape: PerLayerShape, place: Place, by: int) -> PerLayerShape | None:
        """With a part at the next level above (1) or below (-1); None where there is none, or no layer would have it."""
        now = _cost(_level(shape, place))
        beyond = [level for level in self.of[place[1]] if (_cost(level) > now if by > 0 else _cost(level) < now)]
        return _changed(shape, place, beyond[0 if by > 0 else -1]) if beyond else None


def mutate(
    start: PerLayerShape, levels: Levels, judge: Judge, num_generations: int, draw: random.Random
) -> Iterator[tuple[PerLayerShape, float]]:
    """The parent after each generation, and how bad it is on all of the text; ``start`` before the first.

    Args:
        start: keeps the budget.
        levels: of its parts.
        judge: cuts a shape and judges it; the same shape is as bad each time.
        num_generations: each judges ``ROUNDS``.
        draw: where chance comes from; the same one finds the same.
    """
    parent, best = start, judge(start, 1.0)
    yield parent, best
    for _ in tracked(range(num_generations), "Mutations", unit="generation"):
        drawn = (levels.child(parent, draw) for _ in range(MOST_DRAWS))
        rivals = _first_different(drawn, ROUNDS[0][0])
        found: dict[PerLayerShape, float] = {}
        for number, share in ROUNDS:
            found = {rival: judge(rival, share) for rival in rivals[:number]}
            rivals = sorted(found, key=found.__getitem__)  # of equal ones, that which was drawn first
        if rivals and found[rivals[0]] < best:
            parent, best = rivals[0], found[rivals[0]]
        yield parent, best


def _first_different(drawn: Iterator[PerLayerShape | None], number: int) -> list[PerLayerShape]:
    found: list[PerLayerShape] = []
    for one in drawn:
        if one is not None and one not in found:
            found.append(one)
            if len(found) == number:
                break
    return found


def _places(shape: PerLayerShape) -> list[Place]:
    return [(layer, part) for layer in range(len(shape.layers)) for part in SUB_LAYERS]


def _level(shape: PerLayerShape, place: Place) -> Level:
    return tuple(getattr(shape.layers[place[0]], name) for name in SIZES[place[1]])


def _is_gone(shape: PerLayerShape, place: Place) -> bool:
    return _level(shape, place) == GONE[place[1]]


def _cost(level: Level) -> tuple[int, int]:
    """Orders levels by their parameters: a query head (q, o) has as many as a key/value head (k, v)."""
    return sum(level), level[-1]


def _changed(shape: PerLayerShape, place: Place, level: Level) -> PerLayerShape | None:
    """With a part at a level; None where no layer would have such a part."""
    layer, part = place
    layers = list(shape.layers)
    layers[layer] = replace(layers[layer], **dict(zip(SIZES[part], level, strict=True)))
    if not any(getattr(sizes, SIZES[part][0]) for sizes in layers):
        return None
    return replace(shape, layers=tuple(layers))
