"""How far the loss rises without a layer (Shortened LLaMA, arXiv 2402.02834)."""

from __future__ import annotations

from ..data import Calibration
from ..importance import Scores, criterion, layer_loss_rise
from ..masks import LAYER
from ..modeling import ShearingMixin


@criterion(ranks=(LAYER,), comparable_across_layers=True)
def loss_rise(model: ShearingMixin, calibration: Calibration) -> Scores:
    """Mean loss without each layer minus the mean loss with all, nats per token."""
    return {LAYER: layer_loss_rise(model, calibration.batches)}
