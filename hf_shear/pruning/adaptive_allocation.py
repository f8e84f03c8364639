"""Layers that turn the residual stream little lose more: the schedule of Adapt-Pruner (arXiv 2502.03460, section 3).

In many small steps, s_l += delta - amplitude * I_l: s_l is the share of its units that layer l has lost, I_l its
influence under the units that are open now, centred and scaled to [-1, 1]. Within a layer the criterion ranks, kind by
kind.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor

from ..core import UsageError
from ..criteria import Scores
from ..criteria.block_influence import block_influence
from ..data import Calibration
from ..masks import INTERMEDIATE, KEY_VALUE_HEAD, LAYER
from ..modeling import ShearingMixin
from .global_allocation import give_back, too_small
from .open_units import Closed, OpenUnits, Unit, units_per_layer

ADAPTIVE_KINDS = (KEY_VALUE_HEAD, INTERMEDIATE)

ROUNDING = 1e-6
"""A share that a sum of steps leaves this far below a whole number of units counts as that number."""


def close_by_influence(
    model: ShearingMixin,
    calibration: Calibration,
    units: OpenUnits,
    scores: Scores,
    budget: int,
    delta: float,
    amplitude: float = 0.5,
    num_batches: int = 1,
) -> None:
    """Close units, step by step, until the model has at most ``budget`` parameters.

    The last step ends within the step, and what it freed too much is given back.

    Args:
        model: masked; the gates in use are those of ``units``. Left as it is.
        calibration: text for the influence.
        units: open now; changed.
        scores: of ``ADAPTIVE_KINDS``, at the beginning of the steps; higher = keep.
        budget: parameters.
        delta: share of its units that a layer of mean influence loses per step.
        amplitude: in units of ``delta``: how much less, or more, the layers of influence 1 and -1 lose. A layer whose
            step is negative waits: what was removed never comes back.
        num_batches: of the calibration, behind each estimate of the influence, one forward pass each; it is a mean over
            all tokens, which one batch gives well.

    Raises:
        ValueError: the budget cannot be met by these kinds of units.
    """
    closed, text = [], replace(calibration, batches=calibration.batches[:num_batches])
    shares = torch.tensor([_share_lost(units, layer, scores) for layer in range(units.source.num_hidden_layers)])
    order = {kind: score.cpu().argsort(dim=-1, stable=True).tolist() for kind, score in scores.items()}
    while units.num_parameters > budget:
        if bool((shares >= 1).all()):
            raise UsageError(too_small(units, budget, scores))
        with model.use_gates(units.gates(model.device)):
            influence = centred(block_influence(model, text)[LAYER])
        stepped = (shares + delta * (1 - amplitude * influence)).clamp(0, 1)
        # Where all layers that may lose have lost everything, the rest lose alike.
        shares = stepped if not torch.equal(stepped, shares) else (shares + delta).clamp(0, 1)
        for layer in influence.argsort(stable=True).tolist():  # where the budget ends a step, it spares the influential
            closed += _close_share(units, layer, float(shares[layer]), order, budget)
    give_back(units, closed, budget)


def centred(influence: Tensor) -> Tensor:
    """Influence minus its mean, divided by the largest magnitude: in [-1, 1]; 0 where all layers are alike."""
    gap = influence - influence.mean()
    return gap / gap.abs().max().clamp(min=torch.finfo(gap.dtype).tiny)


def _share_lost(units: OpenUnits, layer: int, kinds: Collection[str]) -> float:
    """Mean over kinds of the share of a layer's units that are closed."""
    sizes, source = units.sizes(layer), units.source
    lost = {
        KEY_VALUE_HEAD: 1 - sizes.num_key_value_heads / source.num_key_value_heads,
        INTERMEDIATE: 1 - sizes.num_neurons / source.intermediate_size,
    }
    return sum(lost[kind] for kind in kinds) / len(kinds)


def _close_share(units: OpenUnits, layer: int, share: float, order: dict[str, list], budget: int) -> list[Closed]:
    """Close the lowest units of a layer until ``share`` of each kind is closed, or the budget is met."""
    sizes, closed = units.sizes(layer), []
    for kind, layers in order.items():
        num_units = units_per_layer(kind, units.source)
        num_open = sizes.num_key_value_heads if kind == KEY_VALUE_HEAD else sizes.num_neurons
        missing = int(share * num_units + ROUNDING) - (num_units - num_open)
        for index in layers[layer]:
            if missing <= 0 or units.num_parameters <= budget:
                break
            done = units.close(Unit(kind, layer, index))
            if done is not None:
                closed.append(done)
                missing -= 1
    return closed
