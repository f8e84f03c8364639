"""Fluctuation of what a unit adds (FLAP, arXiv 2312.11983, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..calibration import write_input_moments
from ..core import UsageError
from ..data import Calibration
from ..masks import INTERMEDIATE, KEY_VALUE_HEAD, QUERY_HEAD
from ..modeling import ShearingMixin
from .coupled_weights import open_units, sum_over_units, write_weights
from .criterion import Scores, criterion

KINDS = (KEY_VALUE_HEAD, QUERY_HEAD, INTERMEDIATE)


@criterion(ranks=KINDS, presumes_compensation=True)
def flap(model: ShearingMixin, calibration: Calibration, *, standardise: bool = False) -> Scores:
    """Sum over a unit's columns of o_proj or down_proj of Var[a] * |column|^2, a the column's input.

    It is the squared error that is left once a bias makes up for the mean of what was removed.

    Args:
        standardise: give the open units of each layer mean 0 and variance 1, as the paper does before it compares
            layers. It changes nothing where every layer keeps as many.

    Raises:
        ValueError: fewer than two tokens, of which there is no variance.
    """
    moments = write_input_moments(model, calibration.batches)
    count = int(next(iter(moments.values())).count)
    if count < 2:
        raise UsageError(
            f"The fluctuation of inputs needs at least 2 tokens of calibration text, but there is {count}."
        )
    weights = write_weights(model)
    sums = sum_over_units(
        ((name, weight.detach().float().square() * moments[name].variance) for _, name, weight in weights), model
    )
    gates = open_units(model)
    return {kind: _standardised(sums[kind], gates[kind]) if standardise else sums[kind] for kind in KINDS}


def _standardised(scores: Tensor, gates: Tensor) -> Tensor:
    """Scores [L, ...] less their layer's mean over open units, by their deviation; layers of equal scores give 0."""
    flat, open_now = scores.flatten(1), gates.flatten(1)
    count = open_now.sum(dim=1, keepdim=True).clamp(min=1)
    centred = (flat - (flat * open_now).sum(dim=1, keepdim=True) / count) * open_now
    deviation = (centred.square().sum(dim=1, keepdim=True) / count).sqrt()
    return torch.where(deviation == 0, 0.0, centred / deviation).view(scores.shape)
