"""Weights times activations, summed over columns (Wanda, arXiv 2306.11695; structured as in FLAP's code, Wanda-sp)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ..calibration import write_input_moments
from ..data import Calibration
from ..masks import INTERMEDIATE, KEY_VALUE_HEAD, QUERY_HEAD
from ..modeling import ShearingMixin
from .coupled_weights import sum_over_units, write_weights
from .criterion import Scores, criterion
from .weight_gradients import weight_gradients

KINDS = (KEY_VALUE_HEAD, QUERY_HEAD, INTERMEDIATE)


@criterion(ranks=KINDS)
def wanda_sp(model: ShearingMixin, calibration: Calibration, *, gradient_weight: float = 0.0) -> Scores:
    """Sum over a unit's columns of o_proj or down_proj of |W| * sqrt(E[a^2]), a the column's input.

    Args:
        gradient_weight: alpha of GBLM (arXiv 2311.04902): adds alpha * |W| * sqrt(E[g^2]), g the gradient of a
            sample's mean loss by the weight; its paper takes 100. It costs a backward pass per sample.
    """
    moments = write_input_moments(model, calibration.batches)
    squares = weight_gradients(model, calibration, second=True).second if gradient_weight else {}

    def entries() -> Iterator[tuple[str, Tensor]]:
        for _, name, weight in write_weights(model):
            factor = moments[name].mean_square.sqrt()
            if squares:
                factor = factor + gradient_weight * squares[name].sqrt()
            yield name, weight.detach().float().abs() * factor

    sums = sum_over_units(entries(), model)
    return {kind: sums[kind] for kind in KINDS}
