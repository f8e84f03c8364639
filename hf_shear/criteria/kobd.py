"""K-OBD: the LLM Surgeon's costs for weights that are removed without any update (arXiv 2312.17244, section 3)."""

from __future__ import annotations

from ..data import Calibration
from ..importance import Scores, criterion, removal_costs
from ..masks import INTERMEDIATE, KEY_VALUE_HEAD, LAYER, QUERY_HEAD, SUB_LAYERS
from ..modeling import ShearingMixin


@criterion(
    ranks=(KEY_VALUE_HEAD, QUERY_HEAD, INTERMEDIATE, LAYER, *SUB_LAYERS),
    comparable_across_layers=lambda options: options.get("gradients", True),
)
def kobd(
    model: ShearingMixin,
    calibration: Calibration,
    *,
    gradients: bool = True,
    layers_per_pass: int = 0,
    activation_checkpointing: bool = False,
    store: str = "",
) -> Scores:
    """Expected rise of the mean loss, nats per token, when nothing makes up for what is removed.

    Args:
        gradients, layers_per_pass, activation_checkpointing, store: as in ``llm_surgeon``.
    """
    passes = (layers_per_pass or None, activation_checkpointing, store or None)
    return removal_costs(model, calibration, False, gradients, 0.0, *passes).scores()
