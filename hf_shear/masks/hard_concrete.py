"""The hard-concrete gate: a random gate in [0, 1] with mass at exactly 0 and exactly 1.

Source: Louizos et al., arXiv 1712.01312; used by Sheared LLaMA (arXiv 2310.06694, section 2.1), whose reference
code calls ``log_alpha`` "z_loga". All functions are pure, work on any shape and keep the dtype of ``log_alpha``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

STRETCH_LOW = -0.1  # l: lower end of the stretched interval (paper, section 2.1)
STRETCH_HIGH = 1.1  # r: upper end of the stretched interval
TEMPERATURE = 2.0 / 3.0  # beta: temperature of the concrete distribution
UNIFORM_EPS = 1e-6  # keeps draws and probabilities away from 0 and 1
DETERMINISTIC_SCALE = 0.8  # factor inside the deterministic sigmoid, from the reference code
PAPER_LOG_ALPHA_BOUND = math.log(100.0)  # the reference code clamps log_alpha to +- this value at every forward
PAPER_LOG_ALPHA_START = 5.0  # start value in the reference code, before its clamp


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


def expected_num_closed(log_alpha: Tensor) -> Tensor:
    """Number of closed gates per row (last dimension) that the current model expects: round(sum P(z = 0)); int64."""
    return closed_probability(log_alpha).sum(dim=-1).round().long()
