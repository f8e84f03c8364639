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

LAYER_SAMPLES = 8  # fewer than pruning at once takes: masks may still exchange layers


def mask_start_importance(
    model: ShearingMixin, batches: Iterable[dict[str, Tensor]], micro_batch_size: int | None = None
) -> Scores:
    """Scores for ``model.masks.start_from_importance``.

    Args:
        model: a masked model; its weights, masks, gradients and mode are left as they are.
        batches: calibration batches.
        micro_batch_size: samples per forward. Default: a batch at once.

    Returns:
        float32 scores [*rows, units] per kind of unit; higher = keep.
    """
    text = Calibration.from_batches(list(batches), micro_batch_size)
    importance = taylor(model, text)
    if not model.masks.kinds[LAYER].frozen:
        importance |= loss_rise(model, text, num_samples=LAYER_SAMPLES)
    return importance
