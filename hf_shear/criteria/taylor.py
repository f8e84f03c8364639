"""Taylor expansion of the loss (LLM-Pruner, arXiv 2305.11627), with options after LoRAPrune, SAAP and GBLM."""

from __future__ import annotations

from ..core import UsageError
from ..data import Calibration
from ..importance import Scores, adapter_importance, check_taylor_options, criterion, taylor_importance
from ..masks import ALL_UNIT_KINDS
from ..modeling import ShearingMixin


@criterion(ranks=ALL_UNIT_KINDS, comparable_across_layers=lambda options: options.get("aggregation", "gate") != "fused")
def taylor(
    model: ShearingMixin,
    calibration: Calibration,
    *,
    order: str = "first",
    aggregation: str = "gate",
    gradient: str = "weights",
    rank: int = 8,
    adapter_steps: int = 0,
) -> Scores:
    """How the loss changes without a unit, by the slope of its gate or of its weights.

    Args:
        order: "first", "mixed" (with half the squared slope) or "norm" (root mean square over samples, GBLM's).
        aggregation: "gate" (per sample), "token" (activation times gradient), or over the unit's weights: "element",
            "vector" or "fused" (SAAP's).
        gradient: "weights", or "adapters": estimated from LoRA adapters, the weights frozen (LoRAPrune); first order,
            over weights.
        rank, adapter_steps: of those adapters, and steps that they are trained before.

    Raises:
        ValueError: unknown options, or ones that do not go together.
    """
    check_taylor_options(order, aggregation)
    if gradient == "adapters":
        return adapter_importance(model, calibration.batches, order, aggregation, rank, adapter_steps, calibration.seed)
    if gradient != "weights":
        raise UsageError(f"`gradient` of Taylor scores must be weights or adapters, but it is {gradient!r}.")
    return taylor_importance(model, calibration.batches, order=order, aggregation=aggregation)
