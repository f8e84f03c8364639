"""What a mask strategy is: how gates are made of scores, and how their number is brought to the target's.

A strategy is one class in one file (``relaxed_topk``, ``hard_concrete``) and a row of ``STRATEGIES`` in ``settings.py``.
It holds no state: scores, multipliers and the phase are those of ``ShearingMasks``, and come as arguments.

Shapes: scores ``log_alpha`` and gates are [*rows, units], as ``UnitKind.mask_shape``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from .schedule import MaskPhase, MaskSchedule
from .unit_kinds import UnitKind


class MaskStrategy(ABC):
    """How gates are drawn, read off and constrained.

    Attributes:
        in_words: what a model card says of masks learned so.
        start_value: default start value of log_alpha.
        learning_rate: least default learning rate of log_alpha.
        travel: how far a score shall be able to go before masks harden, all steps in one direction; in few steps the
            default rate rises to what that takes.
        budget_warmup_ratio: default share of the steps over which the size falls from the source's to the target's.
        has_multipliers: whether ``penalty`` is needed to meet the target; its two multipliers are learned then.
        draws_zeros: whether gates are exactly 0 in some draws.
        deterministic_is_binary: whether deterministic gates are 0 or 1 at every phase, not only once hardened.
    """

    in_words: ClassVar[str]
    start_value: ClassVar[float]
    learning_rate: ClassVar[float]
    travel: ClassVar[float]
    budget_warmup_ratio: ClassVar[float]
    has_multipliers: ClassVar[bool]
    draws_zeros: ClassVar[bool]
    deterministic_is_binary: ClassVar[bool]

    def default_rate(self, num_steps: int) -> float:
        """Learning rate of log_alpha for masks that move freely for ``num_steps`` steps.

        AdamW moves a score by about the rate in each step, at most. At ``learning_rate`` a short training moves no score
        past its neighbour, and keeps what its start would keep. So the rate is at least ``travel / num_steps``.
        """
        return max(self.learning_rate, self.travel / max(num_steps, 1))

    @abstractmethod
    def sample(self, kind: UnitKind, log_alpha: Tensor, phase: MaskPhase, uniform: Tensor) -> Tensor:
        """Gates of one training forward, made of ``uniform`` numbers in (0, 1) of the same shape."""

    @abstractmethod
    def deterministic(self, kind: UnitKind, log_alpha: Tensor, phase: MaskPhase) -> Tensor:
        """Noise-free gates, of which exactly ``kind.num_kept`` per row are open."""

    @abstractmethod
    def expected_open(self, kind: UnitKind, log_alpha: Tensor, phase: MaskPhase) -> Tensor:
        """Expected open share of each unit."""

    def soft_value(self, kind: UnitKind, log_alpha: Tensor, phase: MaskPhase) -> Tensor:
        """Noise-free value of each gate before the choice of ``kind.num_kept`` units."""
        return self.expected_open(kind, log_alpha, phase)

    def penalty(self, expected_sparsity: Tensor, target_sparsity: float, linear: Tensor, quadratic: Tensor) -> Tensor:
        """What is added to the loss for one kind of unit; called only where ``has_multipliers``.

        Args:
            expected_sparsity: [rows], share of closed units expected in each row.
            target_sparsity: share to close at the current step.
            linear, quadratic: scalars, the multipliers of the kind.
        """
        raise NotImplementedError(f"{type(self).__name__} has multipliers but no penalty.")

    def phase(self, schedule: MaskSchedule, step: int, micro_batch: int = 0) -> MaskPhase:
        """Phase of optimizer step ``step``: 0 is the first, ``total_steps`` the state after the last."""
        return MaskPhase(
            optimizer_step=step,
            micro_batch=micro_batch,
            budget_progress=schedule.budget_progress(step),
            hardening=schedule.hardening(step),
        )


def hard_topk(scores: Tensor, num_kept: int) -> Tensor:
    """Binary gates [..., n]: 1 for the ``num_kept`` largest scores of each row, ties broken by the lower index."""
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices
    gates = torch.zeros_like(scores)
    return gates.scatter_(-1, order[..., :num_kept], 1.0)


def hardened(gates: Tensor, kind: UnitKind, log_alpha: Tensor, phase: MaskPhase) -> Tensor:
    """Gates on their way to 0 and 1: interpolated linearly by ``phase.hardening``."""
    if phase.hardening == 0:
        return gates
    binary = hard_topk(log_alpha.detach(), kind.num_kept)
    return binary if phase.hardening == 1 else torch.lerp(gates, binary, phase.hardening)
