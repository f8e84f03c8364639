"""Damping, factorising and inverting A and G, in float64; what is not finite or not positive is refused."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import UsageError, charge_flops

DAMPING = 0.01  # times the mean of the diagonal (the value of the LLM Surgeon's code)


def check_finite(matrix: Tensor, name: str) -> None:
    """Refuse statistics with NaN or infinite values.

    Args:
        name: what the matrix is, for the message.
    """
    if not bool(torch.isfinite(matrix).all()):
        raise UsageError(
            f"{name} is not finite: the model gives NaN or infinite values on the calibration text. Check the"
            " checkpoint and its dtype (float16 often overflows; bfloat16 or float32 does not)."
        )


def damped(matrix: Tensor, damping: float = DAMPING) -> Tensor:
    """X + damping * mean(diag X) * I, a new float64 tensor.

    Raises:
        ValueError: a negative damping.
    """
    if not damping >= 0:
        raise UsageError(f"`damping` must be 0 or more, but it is {damping}. The usual value is {DAMPING}.")
    result = matrix.to(torch.float64, copy=True)
    diagonal = result.diagonal()
    diagonal += damping * diagonal.mean()
    return result


def cholesky(matrix: Tensor, name: str) -> Tensor:
    """Lower factor of a damped matrix.

    Raises:
        ValueError: the matrix is not positive definite.
    """
    charge_flops(len(matrix) ** 3 / 3)
    factor, info = torch.linalg.cholesky_ex(matrix)
    if bool(info):
        raise UsageError(
            f"{name} is not positive definite: the calibration text has too few tokens for its {len(matrix)} rows, or"
            f" `damping` is too small. Give more text, or a `damping` of {DAMPING} or more."
        )
    return factor


def inverse(matrix: Tensor, name: str) -> Tensor:
    """Inverse of a damped matrix, by its Cholesky factor.

    Raises:
        ValueError: as ``cholesky``.
    """
    charge_flops(2 * len(matrix) ** 3 / 3)
    return torch.cholesky_inverse(cholesky(matrix, name))
