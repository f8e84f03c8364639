"""Least squares: the kept columns take over what can be told of the gap from the kept inputs.

It is the LLM Surgeon's joint update of columns (arXiv 2312.17244, section 3.3), in which the curvature of the outputs
cancels: W_K + W_S A_SK A_KK^-1, with A = E[a a^T], kept inputs K and removed ones S.
"""

from __future__ import annotations

from torch import Tensor

from ..calibration import DAMPING
from .gap import Gap, ridge


def least_squares(gap: Gap, *, damping: float = DAMPING) -> tuple[Tensor | None, Tensor | None]:
    """The update of the weight; the bias is left alone.

    Args:
        damping: a share of the mean diagonal of A_KK, added to its diagonal.
    """
    return ridge(gap.cross, gap.gram, float(damping * gap.gram.diagonal().mean())), None


least_squares.needs_bias = False
