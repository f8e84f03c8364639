"""What kind of masks a model learns; saved in the masked model's config."""

from __future__ import annotations

from dataclasses import dataclass

from ..core import UsageError, check_ranges
from .hard_concrete import PAPER_LOG_ALPHA_BOUND, PAPER_LOG_ALPHA_START

MASK_METHODS = ("relaxed_topk", "hard_concrete")
MASK_DRAWS = ("per_step", "per_micro_batch")


@dataclass(frozen=True)
class MaskSettings:
    """How masks are parameterised and drawn.

    Attributes:
        method: "relaxed_topk" (the budget holds exactly at every step) or "hard_concrete" (the paper's gates, driven
            to the budget by a Lagrangian).
        seed: seed of the draws.
        draw: "per_step" (the same masks on all ranks and micro-batches of an optimizer step, so that a run can be
            repeated, resumed and spread over devices) or "per_micro_batch" (a draw of its own for every rank and
            micro-batch, as in the reference code).
        log_alpha_start: start value of log_alpha; ``None``: 5 for hard_concrete (as in the reference code), 0 for
            relaxed_topk.
        log_alpha_jitter: standard deviation of the seeded noise on the start value (0.01 in the reference code). It
            also decides between units that have learned nothing.
        log_alpha_bound: clamp of log_alpha after each step; ln(100) in the reference code, ``None`` = unbounded.
            Bounded gates can not close fully: 4.7 % of a closed one still counts as open.
    """

    method: str = "relaxed_topk"
    seed: int = 42
    draw: str = "per_step"
    log_alpha_start: float | None = None
    log_alpha_jitter: float = 0.01
    log_alpha_bound: float | None = None

    def __post_init__(self):
        check_ranges(self)
        if self.method not in MASK_METHODS:
            raise UsageError(f"`method` must be one of {MASK_METHODS}, but it is {self.method!r}.")
        if self.draw not in MASK_DRAWS:
            raise UsageError(f"`draw` must be one of {MASK_DRAWS}, but it is {self.draw!r}.")

    @property
    def start_value(self) -> float:
        """Start value of log_alpha before jitter and bound."""
        if self.log_alpha_start is not None:
            return self.log_alpha_start
        return PAPER_LOG_ALPHA_START if self.method == "hard_concrete" else 0.0

    @classmethod
    def paper(cls, seed: int = 42) -> MaskSettings:
        """The paper's masks, as its reference code has them."""
        return cls(method="hard_concrete", seed=seed, draw="per_micro_batch", log_alpha_bound=PAPER_LOG_ALPHA_BOUND)
