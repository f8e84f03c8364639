"""First-order Taylor importance (LLM-Pruner, arXiv 2305.11627)."""

from __future__ import annotations

from ..data import Calibration
from ..importance import Scores, criterion, taylor_importance
from ..masks import UNIT_KINDS
from ..modeling import ShearingMixin


@criterion(ranks=UNIT_KINDS, comparable_across_layers=True)
def taylor(model: ShearingMixin, calibration: Calibration) -> Scores:
    """Mean over batches of |dL/dz|, z the gate of a unit."""
    return taylor_importance(model, calibration.batches)
