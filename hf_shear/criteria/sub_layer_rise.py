"""How far the loss rises without the attention, or without the MLP, of a layer."""

from __future__ import annotations

from ..data import Calibration
from ..importance import Scores, criterion, sub_layer_loss_rise
from ..masks import SUB_LAYERS
from ..modeling import ShearingMixin


@criterion(ranks=SUB_LAYERS, comparable_across_layers=True)
def sub_layer_rise(model: ShearingMixin, calibration: Calibration) -> Scores:
    """Mean loss without each sub-layer minus the mean loss with all, nats per token."""
    return sub_layer_loss_rise(model, calibration.batches)
