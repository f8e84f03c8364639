"""Least squares with a constant 1 among the inputs: what `least_squares` and `bias` can do, together.

The constant is solved for first, so that no damping reaches it: the weight is fitted to what varies (covariances), the
bias then makes the means equal.
"""

from __future__ import annotations

from torch import Tensor

from ..calibration import DAMPING
from .gap import Gap, ridge


def least_squares_bias(gap: Gap, *, damping: float = DAMPING) -> tuple[Tensor | None, Tensor | None]:
    """The updates of weight and bias.

    Args:
        damping: as in ``least_squares``, of the same A_KK.
    """
    covariance = gap.gram - gap.input_mean.outer(gap.input_mean)
    cross = gap.cross - gap.mean.outer(gap.input_mean)
    update = ridge(cross, covariance, float(damping * gap.gram.diagonal().mean()))
    return update, gap.mean - update @ gap.input_mean


least_squares_bias.needs_bias = True
