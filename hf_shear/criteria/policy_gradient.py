"""Masks learned by policy gradient, without back-propagation (arXiv 2406.10576)."""

from __future__ import annotations

from ..data import Calibration
from ..importance import PolicySettings, Scores, criterion, keep_probabilities
from ..masks import ALL_UNIT_KINDS
from ..modeling import ShearingMixin


@criterion(ranks=ALL_UNIT_KINDS, needs_target_shape=True)
def policy_gradient(
    model: ShearingMixin,
    calibration: Calibration,
    *,
    steps: int = 200,
    masks_per_step: int = 4,
    step_size: float = 0.05,
) -> Scores:
    """Learned probabilities that a unit is kept; they sum to the target's number in every row.

    Args:
        steps: updates, one calibration batch each, of ``masks_per_step`` forward passes.
        step_size: of the update.
    """
    settings = PolicySettings(steps, masks_per_step, step_size, calibration.seed)
    return keep_probabilities(model, calibration.batches, settings)
