"""Relaxed top-k masks: gates in (0, 1) whose sum over a row equals the budget exactly, at every step.

z_i = sigmoid((a_i - tau) / T), with tau solved per row so that sum_i z_i = k. As the temperature T falls to 0 the
gates become the indicator of the k largest scores. There is no multiplier: the constraint holds by construction.

tau depends on the scores; the implicit function theorem gives its derivative. With s_i = z_i (1 - z_i):

    dz_i / da_j = s_i / T * (delta_ij - s_j / sum_k s_k),

so gradients of the gates of a row sum to zero: a score can rise only at the expense of others.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..core import UsageError
from .schedule import MaskPhase, MaskSchedule
from .strategy import MaskStrategy, hard_topk, hardened
from .unit_kinds import UnitKind

# The bracket [min a - 30 T, max a + 30 T] always holds the root for budgets between 1e-12 and 1 - 1e-12 of a row;
# 12 cuts into 8 sections shrink it by 2^36, below float32 resolution. Seven thresholds are tried at once, since small
# tensors cost calls, not arithmetic. The loop has a fixed length: no value is read back to the host.
_BRACKET_TEMPERATURES = 30.0
_NUM_SECTIONS = 8
_NUM_CUTS = 12


class RelaxedTopK(MaskStrategy):
    """Masks that hold the budget of every row exactly, at every step, so that the target needs no penalty."""

    in_words = "masks that hold the target's budget exactly at every step (`relaxed_topk`)"
    start_value = 0.0
    learning_rate = 0.05  # measured: model_cards/tried.md
    travel = 2.0  # half of START_SPREAD: two of five layers, 2 apart, can change places, and a quarter of long rows
    budget_warmup_ratio = 0.0  # measured, as the rate
    has_multipliers = False
    draws_zeros = False
    deterministic_is_binary = True

    def sample(self, kind: UnitKind, log_alpha: Tensor, phase: MaskPhase, uniform: Tensor) -> Tensor:
        """Relaxed gates of the scores, with logistic noise until masks harden."""
        scores = log_alpha
        if phase.noise_scale > 0 and phase.hardening == 0:
            scores = scores + phase.noise_scale * torch.logit(uniform)
        gates = relaxed_topk(scores, kind.budget(phase.budget_progress), phase.temperature)
        return hardened(gates, kind, log_alpha, phase)

    def deterministic(self, kind: UnitKind, log_alpha: Tensor, phase: MaskPhase) -> Tensor:
        """1 for the kept units, 0 for the others."""
        return hard_topk(log_alpha, kind.num_kept)

    def expected_open(self, kind: UnitKind, log_alpha: Tensor, phase: MaskPhase) -> Tensor:
        """The relaxed gates without noise."""
        return relaxed_topk(log_alpha, kind.budget(phase.budget_progress), phase.temperature)

    def phase(self, schedule: MaskSchedule, step: int, micro_batch: int = 0) -> MaskPhase:
        """With the temperature annealed geometrically, and noise falling to 0, until masks harden."""
        progress = min(step / max(schedule.hardening_start, 1), 1.0)
        ratio = schedule.end_temperature / schedule.start_temperature
        return replace(
            super().phase(schedule, step, micro_batch),
            temperature=schedule.start_temperature * ratio**progress,
            noise_scale=schedule.start_noise * (1.0 - progress),
        )


def relaxed_topk(scores: Tensor, budget: float, temperature: float) -> Tensor:
    """Gates of the relaxed top-k.

    Args:
        scores: [..., n], any real numbers; the last dimension is one row.
        budget: k, the sum of each row's gates, 0 < k <= n. Need not be an integer.
        temperature: T > 0.

    Returns:
        [..., n] gates in [0, 1] with row sums equal to ``budget``, differentiable with respect to ``scores``.
    """
    num_units = scores.shape[-1]
    if not 0 < budget <= num_units:
        raise UsageError(f"`budget` must be in (0, {num_units}] (the number of units in a row), but it is {budget}.")
    if not temperature > 0:
        raise UsageError(f"`temperature` must be positive, but it is {temperature}.")
    if budget == num_units:
        return torch.ones_like(scores)
    return _RelaxedTopk.apply(scores, budget, temperature)


class _RelaxedTopk(torch.autograd.Function):
    """Gates by a search for the threshold, gradients in closed form."""

    @staticmethod
    def forward(ctx, scores: Tensor, budget: float, temperature: float) -> Tensor:
        threshold = _solve_threshold(scores, budget, temperature)
        gates = torch.sigmoid((scores - threshold) / temperature)
        ctx.save_for_backward(gates)
        ctx.temperature = temperature
        return gates

    @staticmethod
    def backward(ctx, grad: Tensor):
        (gates,) = ctx.saved_tensors
        slope = gates * (1.0 - gates)
        # Rows of saturated gates have no slope left, and no gradient: the clamp only keeps 0 / 0 away.
        total = slope.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(slope.dtype).tiny)
        mean_grad = (grad * slope).sum(dim=-1, keepdim=True) / total
        return slope * (grad - mean_grad) / ctx.temperature, None, None


def _solve_threshold(scores: Tensor, budget: float, temperature: float) -> Tensor:
    """tau [..., 1], the root of sum sigmoid((a - tau) / T) - k, which falls in tau; its bracket is cut repeatedly."""
    margin = _BRACKET_TEMPERATURES * temperature
    low = scores.amin(dim=-1, keepdim=True) - margin
    width = scores.amax(dim=-1, keepdim=True) + margin - low
    steps = torch.arange(1, _NUM_SECTIONS, device=scores.device, dtype=scores.dtype)
    for _ in range(_NUM_CUTS):
        width = width / _NUM_SECTIONS
        thresholds = (low + width * steps).unsqueeze(-1)
        sums = torch.sigmoid((scores.unsqueeze(-2) - thresholds) / temperature).sum(dim=-1)
        # As many sections are left behind as thresholds leave too many units open.
        low = low + width * (sums > budget).sum(dim=-1, keepdim=True)
    return low + width / 2
