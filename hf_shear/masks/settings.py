"""What kind of masks a model learns; saved in the masked model's config."""

from __future__ import annotations

from dataclasses import dataclass

from ..core import UsageError, check_ranges
from ..core.defaults import MASK_DRAWS, MASK_METHODS
from .hard_concrete import PAPER_LOG_ALPHA_BOUND, HardConcrete
from .relaxed_topk import RelaxedTopK
from .strategy import MaskStrategy

STRATEGIES: dict[str, MaskStrategy] = dict(zip(MASK_METHODS, (RelaxedTopK(), HardConcrete()), strict=True))
"""Mask strategies by the name that ``MaskSettings.method`` and ``--mask_method`` give."""


@dataclass(frozen=True)
class MaskSettings:
    """How masks are parameterised and drawn.

    Attributes:
        method: a name in ``STRATEGIES``: "relaxed_topk" (the budget holds exactly at every step) or "hard_concrete"
            (the paper's gates, driven to the budget by a Lagrangian).
        seed: seed of the draws.
        draw: "per_step" (the same masks on all ranks and micro-batches of an optimizer step, so that a run can be
            repeated, resumed and spread over devices) or "per_micro_batch" (a draw of its own for every rank and
            micro-batch, as in the reference code).
        log_alpha_start: start value of log_alpha; ``None``: the strategy's ``start_value``.
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
        if self.method not in STRATEGIES:
            raise UsageError(f"`method` must be one of {tuple(STRATEGIES)}, but it is {self.method!r}.")
        if self.draw not in MASK_DRAWS:
            raise UsageError(f"`draw` must be one of {MASK_DRAWS}, but it is {self.draw!r}.")

    @property
    def strategy(self) -> MaskStrategy:
        """The strategy that ``method`` names."""
        return STRATEGIES[self.method]

    @property
    def start_value(self) -> float:
        """Start value of log_alpha before jitter and bound."""
        return self.strategy.start_value if self.log_alpha_start is None else self.log_alpha_start

    @classmethod
    def paper(cls, seed: int = 42) -> MaskSettings:
        """The paper's masks, as its reference code has them."""
        return cls(method="hard_concrete", seed=seed, draw="per_micro_batch", log_alpha_bound=PAPER_LOG_ALPHA_BOUND)
