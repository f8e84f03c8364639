"""Seeded random scores: the choice that knows nothing, as a baseline."""

from __future__ import annotations

import torch

from ..data import Calibration
from ..masks import ALL_UNIT_KINDS
from ..modeling import ShearingMixin
from .criterion import Scores, criterion


@criterion(ranks=ALL_UNIT_KINDS)
def random(model: ShearingMixin, calibration: Calibration) -> Scores:
    """Uniform in [0, 1), of the calibration's seed."""
    generator = torch.Generator().manual_seed(calibration.seed)
    return {kind.name: torch.rand(kind.mask_shape, generator=generator) for kind in model.masks.kinds.values()}
