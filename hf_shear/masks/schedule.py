"""How masks change over the steps of mask learning: budget, temperature, noise, hardening.

All values are plain floats computed on the host from the optimizer step, so a step never waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..core import UsageError, check_ranges


@dataclass(frozen=True)
class MaskPhase:
    """Where mask learning stands; everything a mask draw depends on besides ``log_alpha``.

    Attributes:
        optimizer_step: seeds the draw, together with the seed.
        micro_batch: seeds the draw too, if every micro-batch and rank is to have a draw of its own.
        budget_progress: 0 = the source's size, 1 = the target's (the paper's sparsity warm-up).
        temperature: T of the relaxed top-k.
        noise_scale: scale of the logistic noise on scores (relaxed top-k).
        hardening: 0 = learned values, 1 = exactly 0 or 1; the values in between are interpolated linearly.
    """

    optimizer_step: int = 0
    micro_batch: int = 0
    budget_progress: float = 1.0
    temperature: float = 0.05
    noise_scale: float = 0.0
    hardening: float = 0.0


@dataclass(frozen=True)
class MaskSchedule:
    """The steps of mask learning, of which a strategy makes a :class:`MaskPhase` for each.

    Attributes:
        total_steps: optimizer steps of mask learning.
        budget_warmup_steps: steps over which the size falls linearly from the source's to the target's
            (the paper: 640 of 3200).
        hardening_steps: last steps, over which the masks move to exactly 0 or 1; 0 = never (the paper).
        start_temperature, end_temperature: ends of the geometric annealing of T (relaxed top-k).
        start_noise: logistic noise at the start, falling linearly to 0 at the start of hardening (relaxed top-k).
    """

    total_steps: int
    budget_warmup_steps: int = 0
    hardening_steps: int = 0
    start_temperature: float = 1.0
    end_temperature: float = 0.05
    start_noise: float = 0.0

    def __post_init__(self):
        check_ranges(self)
        if self.budget_warmup_steps + self.hardening_steps > self.total_steps:
            raise UsageError(
                f"`budget_warmup_steps` ({self.budget_warmup_steps}) and `hardening_steps` ({self.hardening_steps})"
                f" must fit into the {self.total_steps} steps of mask learning. Lower one of their shares, or learn"
                " masks for more steps."
            )

    @property
    def hardening_start(self) -> int:
        """First step of hardening; equals ``total_steps`` where masks are not hardened."""
        return self.total_steps - self.hardening_steps

    def budget_progress(self, step: int) -> float:
        """How far the size has come at optimizer step ``step``: 0 = the source's, 1 = the target's."""
        return min(step / self.budget_warmup_steps, 1.0) if self.budget_warmup_steps else 1.0

    def hardening(self, step: int) -> float:
        """How far masks have hardened at ``step``; the last trained step already runs with masks of exactly 0 and 1."""
        if not self.hardening_steps:
            return 0.0
        return min(max((step - self.hardening_start + 1) / self.hardening_steps, 0.0), 1.0)
