"""The best shape for a budget: foretold for all, cut and judged for some, trained for the best few.

1. Every shape that fills the budget is listed (``grid``).
2. The source's units are ranked once (``ranked_source``). Some twelve cuts of one size each foretell the loss of all
   shapes (``rises``).
3. The first ``num_candidates`` are cut and compensated, and judged on held-out text: all on a quarter of it, the better
   half on half of it, the better quarter on all (successive halving).
4. The best ``num_finalists`` are trained for a short while, each with the same FLOPs, and judged again: the order after
   the cut is not quite the order after recovery (Minitron, arXiv 2407.14679, section 3).

The proportional shape of ``shape_for_budget`` is always among what is cut and trained, so that a search never returns a
shape that it found to be worse.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import fmean

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel

from ..core import UsageError, check_ranges, counted_flops, tracked
from ..data import Calibration
from ..modeling import check_model
from ..pruning import PruneConfig
from ..shapes import ModelShape, TargetShape, count_parameters, shape_for_budget
from ..training import evaluate_samples
from .budget import ShapeBudget
from .candidate import ShapeCandidate
from .grid import ShapeFilter, shapes_within
from .latency import LatencyModel, shapes_to_time
from .ranked_source import RankedSource
from .record import SearchRecord
from .rises import RiseForecast, single_cuts

RUNGS = (0.25, 0.5, 1.0)
"""Of the held-out text; each judges the better half of the candidates of the one before."""

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
    num_candidates: int = 12,
    num_finalists: int = 3,
    recover: Recover | None = None,
    finalist_flops: float = 0.0,
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
        num_candidates: that are cut and judged.
        num_finalists: that are trained.
        recover: trains a candidate; None: none is trained, and the cut decides.
        finalist_flops: of training each finalist.
        batch_size: samples of a forward that judges.
        output_dir: folder for ``search.json``, which is written after each measurement; None: nothing is written.
        resume: go on with the search in ``output_dir``.

    Returns:
        All shapes that were looked at, the best first.

    Raises:
        UsageError: no shape keeps the budget, filters exclude each other, or ``output_dir`` holds another search.
        FailedError: latencies are limited, but noise hides them.
    """
    check_ranges({"num_candidates": num_candidates, "num_finalists": num_finalists, "batch_size": batch_size})
    if recover is not None and not finalist_flops > 0:
        raise UsageError(f"`finalist_flops` must be above 0 where `recover` trains, but it is {finalist_flops!r}.")
    config, wanted = config or PruneConfig(), wanted or ShapeFilter()
    if config.allocation != "uniform":
        raise UsageError(f"`allocation` must be 'uniform' in a search of shapes, but it is {config.allocation!r}.")
    check_model(model)
    settings = {
        "source": ModelShape.from_config(model.config).to_dict() | {"model_type": model.config.model_type},
        "budget": budget.to_dict(),
        "wanted": wanted.to_dict(),
        "prune_config": config.to_dict(),
        "calibration": calibration.digest(),
        "held_out": _digest(held_out),
        "num_candidates": num_candidates,
        "num_finalists": num_finalists,
        "finalist_flops": finalist_flops if recover is not None else 0.0,
    }
    record = SearchRecord.open(output_dir, settings, resume)
    search = _Search(model, calibration, held_out, budget, config, wanted, batch_size, record)
    found = search.cut_and_judge(num_candidates)
    if recover is not None:
        found = search.train(found, num_finalists, recover, finalist_flops)
    if budget.max_latency is not None:
        found = search.timed(found, num_finalists)
    found = sorted(found, key=lambda one: one.order)
    record.finish(found)
    return found


class _Search:
    """The steps of one search."""

    def __init__(self, model, calibration, held_out, budget, config, wanted, batch_size, record: SearchRecord):
        self.model, self.calibration, self.held_out, self.budget = model, calibration, held_out, budget
        self.config, self.batch_size, self.record = config, batch_size, record
        self.latency = None
        if budget.max_latency is not None:
            self.latency = LatencyModel(model, budget, shapes_to_time(model.config))
        self.shapes = shapes_within(model.config, budget, wanted, self.latency)
        self.proportional = self._proportional(wanted)
        cut = [*self.shapes, *([self.proportional] if self.proportional else [])]
        with counted_flops() as counted:
            self.source = RankedSource(model, calibration, config, cut)
            self.source_losses = {share: self._loss(model, share) for share in RUNGS}
        record.charge("ranking", counted.total)

    def _proportional(self, wanted: ShapeFilter) -> TargetShape | None:
        """What a budget of parameters gives without a search, if the filter lets it through."""
        largest = max(count_parameters(self.model.config, shape) for shape in self.shapes)
        try:
            shape = shape_for_budget(self.model.config, num_parameters=self.budget.max_parameters or largest).shape
        except UsageError:  # its multiples leave no shape so small
            return None
        costs = self._costs(shape)
        return shape if self.budget.used(costs) <= 1 and wanted.refusal(shape) is None else None

    def _costs(self, shape: ModelShape) -> dict[str, float]:
        foretold = {} if self.latency is None else {"latency_seconds": self.latency(shape)}
        return self.budget.costs(self.model.config, shape) | foretold

    def _loss(self, model: PreTrainedModel, share: float) -> float:
        """Mean over the domains of the loss on a share of the held-out text."""
        text = {name: part.select(range(_first(part, share))) for name, part in self.held_out.items()}
        losses = evaluate_samples(model, text, self.batch_size)
        return fmean(domain.mean for domain in losses.values())

    def _rise(self, shape: TargetShape, share: float) -> float:
        """At the cut, measured now or before."""

        def measure() -> float:
            with counted_flops() as counted:
                rise = self._loss(self.source.cut(shape), share) - self.source_losses[share]
            self.record.charge("cuts", counted.total)
            return rise

        return self.record.measured(f"cut, {share:g} of the text", shape, measure)

    def cut_and_judge(self, num_candidates: int) -> list[ShapeCandidate]:
        """All shapes with their foretold rises, and the measured ones of those that are foretold to be the best."""
        alone = single_cuts(self.model.config, self.shapes)
        cuts = [(part, shape) for part, shapes in alone.items() for shape in shapes]
        rises: dict[str, list[tuple[ModelShape, float]]] = {part: [] for part in alone}
        for part, shape in tracked(cuts, "Cuts of one size", unit="shape"):
            rises[part].append((shape, self._rise(shape, RUNGS[0])))
        forecast = RiseForecast(self.shapes[0].source, rises)
        shapes = self.shapes if self.proportional in (None, *self.shapes) else [*self.shapes, self.proportional]
        found = [
            ShapeCandidate(
                sizes=dict(shape.sizes()), costs=self._costs(shape), foretold_rise=forecast(shape),
                proportional=shape == self.proportional,
            )
            for shape in shapes
        ]  # fmt: skip
        found.sort(key=lambda one: one.order)
        left, rest = _with_proportional(found, num_candidates)
        judged = []
        for share in RUNGS:
            tokens = sum(len(part[0]["input_ids"]) * _first(part, share) for part in self.held_out.values())
            done = [
                replace(one, rise=self._rise(self._target(one), share), held_out_tokens=tokens)
                for one in tracked(left, f"Cuts judged on {tokens:,} tokens", unit="shape")
            ]
            done.sort(key=lambda one: one.order)
            left, out = _with_proportional(done, -(-len(done) // 2)) if share < 1 else (done, [])
            judged += out
        return [*left, *judged, *rest]

    def _target(self, candidate: ShapeCandidate) -> TargetShape:
        return TargetShape.from_dict(self.model.config, candidate.sizes)

    def train(
        self, found: list[ShapeCandidate], num_finalists: int, recover: Recover, flops: float
    ) -> list[ShapeCandidate]:
        """The first few, trained and judged again; the others as they were."""
        first, rest = _with_proportional(found, num_finalists)
        trained = []
        for one in tracked(first, "Finalists trained", unit="shape"):
            shape = self._target(one)

            def measure(shape: TargetShape = shape) -> list[float]:
                model, tokens = recover(self.source.cut(shape), flops)
                self.record.charge("training", flops)
                return [self._loss(model, 1.0) - self.source_losses[1.0], tokens]

            rise, tokens = self.record.measured("trained", shape, measure)
            trained.append(replace(one, recovered_rise=rise, recovery_tokens=int(tokens)))
        return [*trained, *rest]

    def timed(self, found: list[ShapeCandidate], num_finalists: int) -> list[ShapeCandidate]:
        """The first few with their latencies measured; those that are above the limit in every round go to the end."""
        assert self.latency is not None and self.budget.max_latency is not None
        limit, kept = self.budget.max_latency, []
        for one in found:
            if one.rise is not None and sum(other.latency is not None for other in kept) < num_finalists:
                seconds = self.latency.measure(self._target(one))
                one = replace(one, latency=seconds.to_dict(), within_noise=seconds.low <= limit < seconds.high)
                if seconds.low > limit:
                    continue
            kept.append(one)
        return kept


def _with_proportional(found: list[ShapeCandidate], number: int) -> tuple[list[ShapeCandidate], list[ShapeCandidate]]:
    """The first ones, with the proportional one in place of the last of them if it is not among them; and the others."""
    first, rest = found[:number], found[number:]
    standard = next((one for one in rest if one.proportional), None)
    if standard is not None:
        first, rest = [*first, standard], [one for one in rest if one is not standard]
    return first, rest


def _first(part: Dataset, share: float) -> int:
    return max(round(share * len(part)), 1)


def _digest(held_out: Mapping[str, Dataset]) -> str:
    digest = hashlib.sha256()
    for name in sorted(held_out):
        digest.update(name.encode())
        digest.update(np.asarray(held_out[name]["input_ids"]).tobytes())
    return digest.hexdigest()
