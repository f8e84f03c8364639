"""Layers with widths of their own, found by mutations that keep the parameter budget.

A search in the manner of EvoPress (arXiv 2410.14649, section 3), with widths in place of its levels of compression. One
shape is the parent. Each generation makes some children: one to three times, one part of a layer (its attention or its MLP)
gains levels and others lose some, or a whole part is dropped; what is then left of the budget goes to parts at random.
Children are cut from the source's statistics, compensated, and judged on held-out text in rounds: all on a small part of
it, the best few on more. The last one becomes the parent if it is better on all of the text.

Levels: of attention each number of key/value heads, with each number of query heads for one; of an MLP multiples of a step.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from transformers import PretrainedConfig

from ..core import check_ranges, tracked
from ..criteria import Scores
from ..masks import HIDDEN, INTERMEDIATE, KEY_VALUE_HEAD, LAYER, QUERY_HEAD
from ..shapes import LayerSizes, ModelShape, PerLayerShape

ATTENTION, MLP = "attention", "mlp"
MOST_SWITCHES = 3
"""Of one child. As in EvoPress, the smaller of two draws counts, so that one switch is the most frequent."""
DROP = 0.1
"""Of switches, those that drop a whole attention or MLP."""
STEPS = (1, 2, 4)
"""Levels that a part gains in one switch, one of these at random."""
ROUNDS = ((8, 1 / 8), (2, 1 / 2), (1, 1.0))
"""Children that are judged, and the share of the held-out text."""
Judge = Callable[[PerLayerShape, float], float]
"""The loss of a shape's cut on a share of the held-out text; lower is better."""
Place = tuple[int, str]  # a layer and its part


@dataclass(frozen=True, kw_only=True)
class Levels:
    """What the parts of layers may become, at one hidden size.

    Attributes:
        config: of the source.
        budget: parameters that no shape exceeds.
        heads: pairs of query heads and key/value heads that a layer may have, by rising parameters; without (0, 0).
        widths: of MLPs, rising; without 0.
        accepts: whether a shape is wanted.
    """

    config: PretrainedConfig
    budget: int
    heads: Sequence[tuple[int, int]]
    widths: Sequence[int]
    accepts: Callable[[PerLayerShape], bool] = lambda shape: True

    def child(self, parent: PerLayerShape, draw: random.Random) -> PerLayerShape | None:
        """A shape some switches away that keeps the budget and leaves nothing of it that a level would fit in; None
        where what was drawn leads to no other shape."""
        shape = parent
        for _ in range(min(draw.randint(1, MOST_SWITCHES), draw.randint(1, MOST_SWITCHES))):
            shape = self._switched(shape, draw) or shape
        return shape if shape != parent and self.accepts(shape) else None

    def _switched(self, shape: PerLayerShape, draw: random.Random) -> PerLayerShape | None:
        places = [(layer, part) for layer in range(len(shape.layers)) for part in (ATTENTION, MLP)]
        if draw.random() < DROP:
            lost = draw.choice(places)
            smaller = self._without(shape, lost)
        else:
            gains = [place for place in places if self._step(shape, place, 1) is not None]
            if not gains:
                return None
            gained, smaller = draw.choice(gains), shape
            for _ in range(draw.choice(STEPS)):
                smaller = self._step(smaller, gained, 1) or smaller
            losers = [place for place in places if place != gained]
            draw.shuffle(losers)
            lost = losers[0]
            while smaller.num_parameters(self.config) > self.budget:
                lost = losers[0]
                next_one = self._step(smaller, lost, -1)
                if next_one is None:
                    losers.pop(0)
                    if not losers:
                        return None
                    continue
                smaller = next_one
        return None if smaller is None else self.filled(smaller, draw, lost)

    def filled(self, shape: PerLayerShape, draw: random.Random, spared: Place | None = None) -> PerLayerShape:
        """With what is left of the budget given to parts at random, but for ``spared``; parts that are gone stay so."""
        places = [(layer, part) for layer in range(len(shape.layers)) for part in (ATTENTION, MLP)]
        open_places = [place for place in places if place != spared and not self._is_gone(shape, place)]
        while open_places:
            place = draw.choice(open_places)
            larger = self._step(shape, place, 1)
            if larger is None or larger.num_parameters(self.config) > self.budget:
                open_places.remove(place)
            else:
                shape = larger
        return shape

    def _step(self, shape: PerLayerShape, place: Place, by: int) -> PerLayerShape | None:
        """With one part a level up or down; None at the end of the levels, of which the lowest is to have no such part."""
        layer, part = place
        sizes = shape.layers[layer]
        levels = [(0, 0), *self.heads] if part == ATTENTION else [0, *self.widths]
        now = (sizes.num_heads, sizes.num_key_value_heads) if part == ATTENTION else sizes.num_neurons
        above = [level for level in levels if self._weight(level) > self._weight(now)]
        below = [level for level in levels if self._weight(level) < self._weight(now)]
        if not (above if by > 0 else below):
            return None
        return self._at(shape, place, above[0] if by > 0 else below[-1])

    def _weight(self, level: tuple[int, int] | int) -> tuple[int, int]:
        """Orders levels by what they cost."""
        return (level, 0) if isinstance(level, int) else (level[0] + level[1], level[1])

    def _without(self, shape: PerLayerShape, place: Place) -> PerLayerShape | None:
        return None if self._is_gone(shape, place) else self._at(shape, place, (0, 0) if place[1] == ATTENTION else 0)

    @staticmethod
    def _is_gone(shape: PerLayerShape, place: Place) -> bool:
        sizes = shape.layers[place[0]]
        return not (sizes.num_heads if place[1] == ATTENTION else sizes.num_neurons)

    @staticmethod
    def _at(shape: PerLayerShape, place: Place, level: tuple[int, int] | int) -> PerLayerShape | None:
        """With a part at a level; None where no layer would have such a part."""
        layer, part = place
        sizes = list(shape.layers)
        if isinstance(level, int):
            sizes[layer] = replace(sizes[layer], num_neurons=level)
        else:
            sizes[layer] = replace(sizes[layer], num_heads=level[0], num_key_value_heads=level[1])
        if not any(one.num_neurons if part == MLP else one.num_heads for one in sizes):
            return None
        return replace(shape, layers=tuple(sizes))


def mutate(
    start: PerLayerShape, levels: Levels, judge: Judge, num_generations: int, seed: int
) -> Iterator[tuple[PerLayerShape, float]]:
    """The parent after each generation, and its loss on all of the text; first ``start`` itself.

    Args:
        start: keeps the budget.
        levels: of its parts.
        judge: cuts a shape and judges it; called with the same arguments it returns the same.
        num_generations: each of which judges ``ROUNDS``, three times the text.
        seed: of what is drawn.
    """
    check_ranges({"num_generations": num_generations})
    draw, parent = random.Random(seed), start
    loss = judge(parent, 1.0)
    yield parent, loss
    for _ in tracked(range(num_generations), "Mutations", unit="generation"):
        rivals: list[PerLayerShape] = []
        for _ in range(10 * ROUNDS[0][0]):  # few are refused; where all are, the generation is over
            child = levels.child(parent, draw)
            if child is not None and child not in rivals:
                rivals.append(child)
            if len(rivals) == ROUNDS[0][0]:
                break
        found = loss
        for number, share in ROUNDS:
            losses = {rival: judge(rival, share) for rival in rivals[:number]}
            rivals = sorted(losses, key=lambda rival: losses[rival])  # of equal ones, the first that was drawn
            found = losses[rivals[0]] if rivals else loss
        if found < loss:
            parent, loss = rivals[0], found
        yield parent, loss


def shape_of_gates(gates: Scores, source: ModelShape) -> PerLayerShape:
    """What is left of each layer under gates of 0 and 1, of which a group's query heads are as many in each group."""

    def left(kind: str, width: int) -> list[int]:
        rows = gates[kind].reshape(source.num_hidden_layers, -1, width) if kind in gates else None
        return [width] * source.num_hidden_layers if rows is None else rows[:, 0].sum(dim=1).int().tolist()

    groups, queries = left(KEY_VALUE_HEAD, source.num_key_value_heads), left(QUERY_HEAD, source.queries_per_group)
    neurons = left(INTERMEDIATE, source.intermediate_size)
    stays = gates[LAYER].tolist() if LAYER in gates else [1.0] * source.num_hidden_layers
    layers = (
        LayerSizes(number * each, number, width) if stay else LayerSizes(0, 0, 0)
        for number, each, width, stay in zip(groups, queries, neurons, stays, strict=True)
    )
    hidden = int(gates[HIDDEN].sum()) if HIDDEN in gates else source.hidden_size
    return PerLayerShape(source, hidden, tuple(layers))
