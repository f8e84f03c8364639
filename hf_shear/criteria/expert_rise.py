"""How far the loss rises without an expert of a mixture."""

from __future__ import annotations

from ..data import Calibration
from ..importance import Scores, criterion, expert_loss_rise
from ..masks import EXPERT
from ..modeling import ShearingMixin


@criterion(ranks=(EXPERT,), comparable_across_layers=True)
def expert_rise(model: ShearingMixin, calibration: Calibration) -> Scores:
    """Mean loss without each expert, its tokens routed to others, minus the mean loss with all, nats per token."""
    return {EXPERT: expert_loss_rise(model, calibration.batches)}
