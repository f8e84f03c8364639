"""Size of activations (Minitron, arXiv 2407.14679, section 2.2)."""

from __future__ import annotations

from ..data import Calibration
from ..importance import Scores, activation_sizes, criterion
from ..masks import HIDDEN, INTERMEDIATE, KEY_VALUE_HEAD, QUERY_HEAD
from ..modeling import ShearingMixin


@criterion(ranks=(HIDDEN, KEY_VALUE_HEAD, QUERY_HEAD, INTERMEDIATE))
def activation(model: ShearingMixin, calibration: Calibration, *, aggregation: str = "l2") -> Scores:
    """Outputs of norms, inputs of down_proj, outputs of heads: "l2" over a sample's tokens, or "mean_abs"."""
    return activation_sizes(model, calibration.batches, aggregation)
