"""How much a layer turns the residual stream (ShortGPT, arXiv 2403.03853; Adapt-Pruner, arXiv 2502.03460)."""

from __future__ import annotations

from ..data import Calibration
from ..importance import Scores, criterion, layer_influence
from ..masks import LAYER
from ..modeling import ShearingMixin


@criterion(ranks=(LAYER,))
def block_influence(model: ShearingMixin, calibration: Calibration) -> Scores:
    """1 - mean over tokens of the cosine between what a layer reads and what it hands on."""
    return {LAYER: layer_influence(model, calibration.batches)}
