"""Magnitude of a unit's weights: a baseline that needs no text."""

from __future__ import annotations

from ..data import Calibration
from ..masks import ALL_UNIT_KINDS
from ..modeling import ShearingMixin
from .coupled_weights import sum_over_units, values_of
from .criterion import Scores, criterion


@criterion(ranks=ALL_UNIT_KINDS)
def magnitude(model: ShearingMixin, calibration: Calibration, *, power: float = 1.0) -> Scores:
    """Sum of |W|^power over all weights that the unit takes along (``hf_shear/criteria/coupled_weights.py``)."""
    return sum_over_units(values_of(model), model, measure=lambda value: value.abs() ** power)
