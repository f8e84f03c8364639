"""The best shape for a budget: predicted for all shapes, and trained for the best few.

1. Every shape that fills the budget is listed (``grid``).
2. The source's units are ranked once (``ranked_source``).
3. Some twelve models are cut in one size each, compensated and judged on held-out text. They predict how far the loss of
   every shape rises (``rises``). Times the shape's weighted distance from the source that is its score: rises at the cut
   alone take too little account of what training wins back, and of heavy cuts they are all alike.
4. The ``num_finalists`` with the lowest scores are cut and judged, and scored by their own rises: where several sizes
   shrink, predictions are too low. If training is asked for, each is trained for a short while with the same FLOPs, and
   judged again: the order at the cut is not the order after recovery (Minitron, arXiv 2407.14679, section 3). How well
   each of these judgements tells the order after long recovery is measured in model_cards/search.md.
5. If ``num_generations`` is given, layers of different widths are looked for by mutation, from the best of these shapes and
   from what ``global`` allocation makes of the budget (``mutation``).

The shape that ``shape_for_budget`` picks is always among the finalists, so that a search never returns a shape that it
found to be worse.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel

from ..core import FailedError, UsageError, check_ranges, counted_flops, tracked
from ..data import Calibration, samples_digest
from ..modeling import check_model
from ..pruning import PruneConfig
from ..shapes import ModelShape, PerLayerShape, TargetShape, count_parameters, shape_for_budget, weighted_distance
from ..training import evaluate_samples
from .budget import ShapeBudget
from .candidate import ShapeCandidate
from .divergence import SourceDivergence
from .grid import ShapeFilter, shapes_within
from .latency import LatencyModel, shapes_to_time
from .mutation import Levels, mutate
from .ranked_source import RankedSource, shape_of_gates
from .record import SearchRecord
from .rises import PARTS, RiseForecast, share_kept, single_cuts

NUM_BUDGETS = 6
"""Of the front: this one, and larger ones up to the source."""
APART = 0.05

Recover = Callable[[PreTrainedModel, float], tuple[PreTrainedModel, int]]
"""Trains a model for some FLOPs; returns it, and the tokens it was trained on."""


def search_shapes(
    model: PreTrainedModel,
    calibration: Calibration,
    held_out: Mapping[str, Dataset],
    budget: ShapeBudget,
    *,
    config: PruneConfig | None = None,
    wanted: ShapeFilter | None = None,
    num_finalists: int = 3,
    recover: Recover | None = None,
    finalist_flops: float = 0.0,
    num_generations: int = 0,
    seed: int = 42,
    batch_size: int = 8,
    output_dir: str | os.PathLike | None = None,
    resume: bool = False,
) -> list[ShapeCandidate]:
    """Look for the shape of a budget whose model loses least.

    Args:
        model: stock, dense, of a supported family; left as it is.
        calibration: text to rank units and to compensate on.
        held_out: packed samples by domain that candidates are judged by; neither calibrated nor trained on, nor what the
            final model is reported on.
        budget: limits.
        config: criterion and compensation; its allocation is uniform.
        wanted: what shapes are looked at.
        num_finalists: that are trained.
        recover: trains a candidate; None: none is trained, and the cut decides.
        finalist_flops: of training each finalist.
        num_generations: of mutations to layers of different widths, each of which cuts 11 shapes and reads ``held_out``
            three times; 0: none are looked for.
        seed: of the mutations.
        batch_size: samples of a forward that judges.
        output_dir: folder for ``search.json``, which is written after each measurement; None: nothing is written.
        resume: go on with the search in ``output_dir``.

    Returns:
        All shapes that were looked at, the best first.

    Raises:
        UsageError: no shape keeps the budget, filters exclude each other, or ``output_dir`` holds another search; layers
            of different widths are looked for where finalists are trained or other than parameters are limited.
        FailedError: latencies are limited, but noise hides them.
    """
    check_ranges({"num_finalists": num_finalists, "batch_size": batch_size, "num_generations": num_generations})
    if recover is not None and not finalist_flops > 0:
        raise UsageError(f"`finalist_flops` must be above 0 where `recover` trains, but it is {finalist_flops!r}.")
    config, wanted = config or PruneConfig(), wanted or ShapeFilter()
    if config.allocation != "uniform":
        raise UsageError(f"`allocation` must be 'uniform' in a search of shapes, but it is {config.allocation!r}.")
    if num_generations and set(budget.limits) != {"num_parameters"}:
        raise UsageError(
            f"`num_generations` looks for layers of different widths, which `max_parameters` alone limits, but the budget"
            f" limits {', '.join(budget.limits)}. Leave `num_generations` at 0, or limit the parameters."
        )
    if num_generations and recover is not None:
        raise UsageError(
            "`num_generations` looks for layers of different widths, which are judged at the cut, but finalists are to be"
            " trained, whose losses do not compare with that. Leave out `num_generations`, or the training."
        )
    check_model(model)
    settings = {
        "source": ModelShape.from_config(model.config).to_dict() | {"model_type": model.config.model_type},
        "budget": budget.to_dict(),
        "wanted": wanted.to_dict(),
        "prune_config": config.to_dict(),
        "calibration": calibration.digest(),
        "held_out": {name: samples_digest(part) for name, part in held_out.items()},
        "num_finalists": num_finalists,
        "finalist_flops": finalist_flops if recover is not None else 0.0,
    }
    if num_generations:
        settings |= {"num_generations": num_generations, "seed": seed}
    record = SearchRecord.open(output_dir, settings, resume)
    search = _Search(model, calibration, held_out, budget, config, wanted, batch_size, record)
    found = search.predicted()
    chosen, rest = search.finalists(found, num_finalists)
    found = sorted([*search.judged(chosen, recover, finalist_flops), *rest], key=lambda one: one.order)
    if num_generations:
        found = sorted([*found, search.per_layer(found, num_generations, seed)], key=lambda one: one.order)
    record.finish(found)
    return found


class _Search:
    """The steps of one search."""

    def __init__(self, model, calibration, held_out, budget, config, wanted, batch_size, record: SearchRecord):
        self.model, self.calibration, self.held_out, self.budget = model, calibration, held_out, budget
        self.wanted, self.batch_size, self.record = wanted, batch_size, record
        self.latency = None
        if budget.max_latency is not None:
            self.latency = LatencyModel(model, budget, shapes_to_time(model.config))
        self.shapes = shapes_within(model.config, budget, wanted, self.latency)
        self.unsearched = self._unsearched(wanted)
        cut = [*self.shapes, *([self.unsearched] if self.unsearched else [])]
        with counted_flops() as counted:
            self.source = RankedSource(model, calibration, config, cut)
            self.source_loss = self._loss(model)
        record.charge("ranking", counted.total)

    def _unsearched(self, wanted: ShapeFilter) -> TargetShape | None:
        """What a budget of parameters gives without a search, if the filter lets it through."""
        largest = max(count_parameters(self.model.config, shape) for shape in self.shapes)
        try:
            shape = shape_for_budget(self.model.config, num_parameters=self.budget.max_parameters or largest).shape
        except UsageError:  # its multiples leave no shape so small
            return None
        costs = self._costs(shape)
        return shape if self.budget.used(costs) <= 1 and wanted.refusal(shape) is None else None

    def _costs(self, shape: ModelShape) -> dict[str, float]:
        predicted = {} if self.latency is None else {"latency_ms": self.latency(shape)}
        return self.budget.costs(self.model.config, shape) | predicted

    def _loss(self, model: PreTrainedModel) -> float:
        """Mean over the domains of the held-out loss."""
        losses = evaluate_samples(model, self.held_out, self.batch_size)
        return fmean(domain.mean for domain in losses.values())

    def _rise(self, shape: TargetShape) -> float:
        """At the cut, measured now or before."""

        def measure() -> float:
            with counted_flops() as counted:
                rise = self._loss(self.source.cut(shape)) - self.source_loss
            self.record.charge("cuts", counted.total)
            return rise

        return self.record.measured("cut", shape, measure)

    def predicted(self) -> list[ShapeCandidate]:
        """All shapes, the best first, with the rises that are predicted."""
        alone = single_cuts(self.model.config, self.shapes)
        cuts = [(part, shape) for part, shapes in alone.items() for shape in shapes]
        rises: dict[str, list[tuple[ModelShape, float]]] = {part: [] for part in alone}
        for part, shape in tracked(cuts, "Cuts of one size", unit="shape"):
            rises[part].append((shape, self._rise(shape)))
        forecast = RiseForecast(self.shapes[0].source, rises)
        self.record.note("single_cuts", forecast.points)
        self.record.note("front", self._front(forecast))
        shapes = self.shapes if self.unsearched in (None, *self.shapes) else [*self.shapes, self.unsearched]
        found = [
            ShapeCandidate(
                sizes=dict(shape.sizes()), costs=self._costs(shape), predicted_rise=forecast(shape),
                score=_score(forecast(shape), shape), predicted_by_part=forecast.parts(shape),
                unsearched=shape == self.unsearched,
            )
            for shape in shapes
        ]  # fmt: skip
        return sorted(found, key=lambda one: one.order)

    def _front(self, forecast: RiseForecast) -> list[dict[str, Any]]:
        """The best predicted shape of this budget and of larger ones, up to the source."""
        config, found = self.model.config, []
        whole = self.budget.used(self._costs(ModelShape.from_config(config)))
        for step in range(NUM_BUDGETS):
            budget = self.budget.scaled(whole ** (step / NUM_BUDGETS)) if whole > 1 else self.budget
            shapes = [one for one in shapes_within(config, budget, self.wanted, self.latency) if forecast.knows(one)]
            best = min(shapes, key=lambda shape: _score(forecast(shape), shape), default=None)
            if best is not None:
                found.append({"sizes": best.sizes(), "costs": self._costs(best), "predicted_rise": forecast(best)})
        return found

    def _target(self, candidate: ShapeCandidate) -> TargetShape:
        return TargetShape.from_dict(self.model.config, candidate.sizes)

    def finalists(self, found: list[ShapeCandidate], number: int) -> tuple[list[ShapeCandidate], list[ShapeCandidate]]:
        """The first few that differ, and the unsearched one; and the others.

        Where latencies are limited they are measured now: what is above the limit in every round is left out.
        """
        chosen, rest = [], []
        for one in found:
            full = len(chosen) >= number
            differs = all(_differs(self._target(one), self._target(other)) for other in chosen)
            if not one.unsearched and (full or not differs):
                rest.append(one)
            elif self.latency is None:
                chosen.append(one)
            else:
                taken, limit = self.latency.measure(self._target(one)), self.budget.limits["latency_ms"]
                if taken.low <= limit:
                    chosen.append(replace(one, latency=taken.to_dict(), within_noise=limit < taken.high))
        if not chosen:
            raise FailedError(
                f"Of {len(found)} shapes that were predicted to keep `max_latency` ({self.budget.max_latency} ms per token)"
                " none does when it is measured. Other processes may slow the machine down. Free it, or raise the limit."
            )
        return chosen, rest

    def judged(self, chosen: list[ShapeCandidate], recover: Recover | None, flops: float) -> list[ShapeCandidate]:
        """Finalists cut and judged; and, where anything trains, trained and judged again."""
        found = []
        for one in tracked(chosen, "Finalists", unit="shape"):
            shape = self._target(one)
            rise = self._rise(shape)
            one = replace(one, rise=rise, score=_score(rise, shape))
            if recover is not None:
                rise, tokens = self.record.measured("trained", shape, partial(self._trained, shape, recover, flops))
                one = replace(one, recovered_rise=rise, recovery_tokens=int(tokens))
            found.append(one)
        return found

    def per_layer(self, found: list[ShapeCandidate], num_generations: int, seed: int) -> ShapeCandidate:
        """Layers of different widths, from the best of ``found`` or what ``global`` allocation gives at the same size."""
        best = next(one for one in found if one.rise is not None)
        config, source, draw = self.model.config, ModelShape.from_config(self.model.config), random.Random(seed)
        budget = int(self.budget.limits["num_parameters"])
        levels = Levels.within(config, budget, self.wanted, self.source.scores)
        uniform = shape_of_gates(self.source.gates(self._target(best)), source)
        starts = [
            levels.snapped(shape, draw) for shape in (uniform, self.source.allocated(budget)) if shape is not None
        ]
        starts = [shape for shape in starts if levels.fits(shape) and levels.accepts(shape)] or [uniform]
        judge = partial(self._divergence, SourceDivergence(self.model, self.held_out, self.batch_size))
        start = min(starts, key=partial(judge, share=1.0))
        shape, _ = list(mutate(start, levels, judge, num_generations, draw))[-1]
        rise = self.record.measured("cut", shape, lambda: self._loss(self.source.cut_layers(shape)) - self.source_loss)
        padded = shape.padded(config)
        costs = self._costs(padded) | {"num_parameters": shape.num_parameters(config)}
        assert best.rise is not None
        ratio = rise / best.rise if best.rise > 0 else 1.0
        return ShapeCandidate(
            sizes=dict(padded.sizes()), costs=costs, predicted_rise=ratio * best.predicted_rise, score=ratio * best.score,
            predicted_by_part={}, rise=rise, layers=shape.to_list(),
        )  # fmt: skip

    def _divergence(self, measured: SourceDivergence, shape: PerLayerShape, share: float) -> float:
        """From the source, of a cut on a share of the text; measured now or before."""

        def measure() -> float:
            with counted_flops() as counted:
                found = measured(self.source.cut_layers(shape), share)
            self.record.charge("mutations", counted.total)
            return found

        return self.record.measured(f"divergence on {share:g} of the text", shape, measure)

    def _trained(self, shape: TargetShape, recover: Recover, flops: float) -> list[float]:
        model, tokens = recover(self.source.cut(shape), flops)
        self.record.charge("training", flops)
        return [self._loss(model) - self.source_loss, tokens]


def _score(rise: float, shape: TargetShape) -> float:
    """The product tells the order after training better than either (model_cards/search.md)."""
    return rise * weighted_distance(shape.source, shape.sizes())


def _differs(one: TargetShape, other: TargetShape) -> bool:
    """Whether some part keeps another share of its units, by a twentieth of the source's or more."""
    return any(abs(share_kept(part, one, one.source) - share_kept(part, other, one.source)) >= APART for part in PARTS)
