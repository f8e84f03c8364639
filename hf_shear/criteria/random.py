"""Seeded random scores: the choice that knows nothing, as a baseline."""

from __future__ import annotations

from ..data import Calibration
from ..importance import Scores, criterion, random_importance
from ..masks import ALL_UNIT_KINDS
from ..modeling import ShearingMixin


@criterion(ranks=ALL_UNIT_KINDS)
def random(model: ShearingMixin, calibration: Calibration) -> Scores:
    """Uniform in [0, 1), of the calibration's seed."""
    return random_importance(model, calibration.seed)
