"""The scores that learned masks start from: Taylor for units within layers, the loss rise for whole layers."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from ..data import Calibration
from ..masks import LAYER
from ..modeling import ShearingMixin
from .criterion import Scores
from .loss_rise import loss_rise
from .taylor import taylor

LAYER_BATCHES = 4  # of the calibration batches: a forward pass per layer for each


def mask_start_importance(
    model: ShearingMixin, batches: Iterable[dict[str, Tensor]], micro_batch_size: int | None = None
) -> Scores:
    """Scores for ``model.masks.start_from_importance``.

    Args:
        model: a masked model; its weights, masks, gradients and mode are left as they are.
        batches: calibration batches; layers are judged on the first ``LAYER_BATCHES``.
        micro_batch_size: samples per forward. Default: a batch at once.

    Returns:
        float32 scores [*rows, units] per kind of unit; higher = keep.
    """
    batches = list(batches)
    importance = taylor(model, Calibration.from_batches(batches, micro_batch_size))
    if not model.masks.kinds[LAYER].frozen:
        importance |= loss_rise(model, Calibration.from_batches(batches[:LAYER_BATCHES], micro_batch_size))
    return importance
