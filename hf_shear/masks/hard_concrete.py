"""Hard-concrete masks: random gates in [0, 1] with mass at exactly 0 and 1, driven to the target by a Lagrangian.

Source: Louizos et al., arXiv 1712.01312; used by Sheared LLaMA (arXiv 2310.06694, section 2.1), whose reference code
calls ``log_alpha`` "z_loga". The functions work on any shape and keep the dtype of ``log_alpha``.

For each kind of unit, with rows (layers, or one row for the whole model), expected sparsity s and target t, the penalty
is (section 2.1, equations 1-2)

    L = mean over rows of [ multiplier_linear * (s - t) + multiplier_quadratic * (s - t)^2 ]

The multipliers ascend while everything else descends. The sign is flipped inside autograd, so that any optimizer
(AdamW, DeepSpeedCPUAdam, ...) that descends on every parameter does the right thing: neither a negative learning rate
nor ``maximize=True``, which some optimizer wrappers ignore.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .schedule import MaskPhase
from .strategy import MaskStrategy, hard_topk, hardened
from .unit_kinds import UnitKind

STRETCH_LOW = -0.1  # l: lower end of the stretched interval (paper, section 2.1)
STRETCH_HIGH = 1.1  # r: upper end of the stretched interval
TEMPERATURE = 2.0 / 3.0  # beta: temperature of the concrete distribution
UNIFORM_EPS = 1e-6  # keeps draws and probabilities away from 0 and 1
DETERMINISTIC_SCALE = 0.8  # factor inside the deterministic sigmoid, from the reference code
PAPER_LOG_ALPHA_BOUND = math.log(100.0)  # the reference code clamps log_alpha to +- this value at every forward


class HardConcrete(MaskStrategy):
    """The paper's masks. Their size meets the target only on average, and only once the multipliers have grown."""

    in_words = "hard concrete masks under a Lagrangian, as in the paper (`hard_concrete`)"
    start_value = 5.0  # of the reference code, before its clamp
    learning_rate = 1.0  # the paper, section 3.1
    travel = 0.0  # its rate is far beyond what it takes to close a gate
    budget_warmup_ratio = 0.2  # the paper, section 3.1
    has_multipliers = True
    draws_zeros = True
    deterministic_is_binary = False

    def sample(self, kind: UnitKind, log_alpha: Tensor, phase: MaskPhase, uniform: Tensor) -> Tensor:
        """Gates drawn from the hard-concrete distribution."""
        return hardened(sample_gates(log_alpha, uniform), kind, log_alpha, phase)

    def deterministic(self, kind: UnitKind, log_alpha: Tensor, phase: MaskPhase) -> Tensor:
        """The soft value of the kept units, moved towards 1 as hardening proceeds; 0 for the others."""
        return hardened(soft_gates(log_alpha) * hard_topk(log_alpha, kind.num_kept), kind, log_alpha, phase)

    def expected_open(self, kind: UnitKind, log_alpha: Tensor, phase: MaskPhase) -> Tensor:
        """1 - P(z = 0)."""
        return 1.0 - closed_probability(log_alpha)

    def soft_value(self, kind: UnitKind, log_alpha: Tensor, phase: MaskPhase) -> Tensor:
        """As ``soft_gates``."""
        return soft_gates(log_alpha)

    def penalty(self, expected_sparsity: Tensor, target_sparsity: float, linear: Tensor, quadratic: Tensor) -> Tensor:
        """The Lagrangian of one kind, on whose multipliers gradient descent ascends."""
        return lagrangian_penalty(expected_sparsity, target_sparsity, ascend(linear), ascend(quadratic))


def sample_gates(log_alpha: Tensor, uniform: Tensor) -> Tensor:
    """Draw gates z from uniform numbers of the same shape.

    s = sigmoid((logit(u) + log_alpha) / beta);  z = clip(s * (r - l) + l, 0, 1).
    """
    uniform = uniform.clamp(UNIFORM_EPS, 1.0 - UNIFORM_EPS)
    concrete = torch.sigmoid((torch.logit(uniform) + log_alpha) / TEMPERATURE)
    return (concrete * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW).clamp(0.0, 1.0)


def closed_probability(log_alpha: Tensor) -> Tensor:
    """P(z = 0) = sigmoid(beta * ln(-l / r) - log_alpha), in [eps, 1 - eps]. Comes from the CDF, never from a draw."""
    shift = TEMPERATURE * math.log(-STRETCH_LOW / STRETCH_HIGH)
    return torch.sigmoid(shift - log_alpha).clamp(UNIFORM_EPS, 1.0 - UNIFORM_EPS)


def soft_gates(log_alpha: Tensor) -> Tensor:
    """Noise-free gate values sigmoid(0.8 * log_alpha / beta), used in evaluation and at export."""
    return torch.sigmoid(log_alpha / TEMPERATURE * DETERMINISTIC_SCALE)


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
