"""The Lagrangian that drives expected sparsity to its target (arXiv 2310.06694, section 2.1, equations 1-2).

For each kind of mask, with rows (layers, or one row for the whole model), expected sparsity s and target t:

    L = mean over rows of [ multiplier_linear * (s - t) + multiplier_quadratic * (s - t)^2 ]

The multipliers ascend while everything else descends. The sign is flipped inside autograd, so that any optimizer
(AdamW, DeepSpeedCPUAdam, ...) that descends on every parameter does the right thing: neither a negative learning rate
nor ``maximize=True``, which some optimizer wrappers ignore.
"""

from __future__ import annotations

import torch
from torch import Tensor


class _FlipGradient(torch.autograd.Function):
    """Identity forward, negated gradient backward."""

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return -grad


def ascend(multiplier: Tensor) -> Tensor:
    """Return ``multiplier`` unchanged in value, such that gradient descent on it becomes gradient ascent."""
    return _FlipGradient.apply(multiplier)


def lagrangian_penalty(
    expected_sparsity: Tensor, target_sparsity: float, multiplier_linear: Tensor, multiplier_quadratic: Tensor
) -> Tensor:
    """One mask kind's penalty.

    Args:
        expected_sparsity: [rows], share of closed units expected in each row.
        target_sparsity: share to close, 1 - target / source, at the current step.
        multiplier_linear, multiplier_quadratic: scalars, lambda_1 and lambda_2.

    Returns:
        A scalar.
    """
    gap = expected_sparsity - target_sparsity
    return (multiplier_linear * gap + multiplier_quadratic * gap.square()).mean()
