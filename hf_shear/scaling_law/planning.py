"""Which shape to prune to, for one total budget: mask learning and recovery together.

C = f0 D_mask + f D_recovery    FLOPs; f0, f FLOPs per token of the masked source and of the pruned model
D_mask = s (D_mask + D_recovery)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..core import UsageError, check_ranges
from ..core.defaults import GAIN, MASK_SHARE
from .curves import FLOPS_PER_PARAMETER_AND_TOKEN
from .estimates import Estimate, number_text
from .law_fit import LawFit
from .recovery_run import Case


@dataclass(frozen=True)
class Candidate:
    """A shape to prune to.

    Attributes:
        name: of the shape.
        case: its facts.
        flops_per_token: of recovery; default 6 N.
        source_flops_per_token: of mask learning, which trains the whole source; default 6 N0.
    """

    name: str
    case: Case
    flops_per_token: float | None = None
    source_flops_per_token: float | None = None

    @property
    def recovery_cost(self) -> float:
        """FLOPs of one recovery token."""
        return self.flops_per_token or FLOPS_PER_PARAMETER_AND_TOKEN * self.case.pruned_size

    @property
    def mask_cost(self) -> float:
        """FLOPs of one token of mask learning."""
        return self.source_flops_per_token or FLOPS_PER_PARAMETER_AND_TOKEN * self.case.num_parameters


@dataclass(frozen=True)
class CandidatePlan:
    """What a budget makes of one candidate.

    Attributes:
        mask_tokens, recovery_tokens: that the budget pays for.
        loss: predicted after them.
        floor: loss at infinitely many recovery tokens.
        saturation: tokens from which on a doubling gains less than the plan's ``gain``.
        target: tokens to the target loss; None where none was asked for.
        within_reach: whether the loss is at most the largest allowed; None where none was given.
    """

    candidate: Candidate
    mask_tokens: float
    recovery_tokens: float
    loss: Estimate
    floor: Estimate
    saturation: Estimate
    target: Estimate | None
    within_reach: bool | None


@dataclass(frozen=True)
class BudgetPlan:
    """All candidates at one budget, the one to take, and why."""

    total_flops: float
    plans: tuple[CandidatePlan, ...]
    choice: CandidatePlan | None
    reason: str


def plan_budget(
    fit: LawFit,
    candidates: Sequence[Candidate],
    total_flops: float,
    *,
    max_loss: float | None = None,
    mask_share: float = MASK_SHARE,
    gain: float = GAIN,
) -> BudgetPlan:
    """Compare candidates for a budget.

    With ``max_loss`` the smallest model that is predicted to reach it is chosen, because a smaller one is cheaper to use
    ever after; without it, the lowest loss, and among those that the intervals can not tell apart, the smallest.

    Args:
        total_flops: of mask learning and recovery.
        max_loss: nats per token that the pruned model may have.
        mask_share: mask learning's share of all tokens; 0 for one-shot pruning.
        gain: nats per doubling, for saturation.

    Raises:
        ValueError: no candidates, two of one name, or a share outside of [0, 1).
    """
    if not candidates:
        raise UsageError("`candidates` is empty: give at least one shape to prune to.")
    names = [candidate.name for candidate in candidates]
    if len(set(names)) < len(names):
        raise UsageError(f"`candidates` must have different names, but they are {', '.join(names)}.")
    check_ranges({"total_flops": total_flops, "max_loss": max_loss, "mask_share": mask_share, "gain": gain})
    plans = tuple(_plan_one(fit, candidate, total_flops, max_loss, mask_share, gain) for candidate in candidates)
    choice, reason = _choose(plans, max_loss, total_flops)
    return BudgetPlan(total_flops, plans, choice, reason)


def _plan_one(fit: LawFit, candidate: Candidate, total_flops, max_loss, mask_share, gain) -> CandidatePlan:
    case = candidate.case
    per_token = mask_share * candidate.mask_cost + (1 - mask_share) * candidate.recovery_cost
    tokens = total_flops / per_token
    recovery = (1 - mask_share) * tokens
    loss = fit.predict(case, recovery)
    return CandidatePlan(
        candidate, mask_share * tokens, recovery, loss, fit.floor(case), fit.saturation_tokens(case, gain),
        None if max_loss is None else fit.tokens_for(case, max_loss),
        None if max_loss is None else loss.value <= max_loss,
    )  # fmt: skip


def _choose(plans: Sequence[CandidatePlan], max_loss, total_flops) -> tuple[CandidatePlan | None, str]:
    budget = f"{total_flops:.3g} FLOPs"
    best = min(plans, key=_loss)
    if max_loss is not None:
        able = [plan for plan in plans if plan.within_reach]
        if not able:
            return None, (
                f"No candidate reaches {max_loss:g} with {budget}; the nearest is {best.candidate.name} at"
                f" {best.loss.value:.4f} ({_way_out(best, max_loss)})."
            )
        chosen = min(able, key=lambda plan: plan.candidate.case.pruned_size)
        reason = f"the smallest of {len(able)} candidate(s) that reach {max_loss:g} with {budget}"
        if chosen.loss.high is not None and chosen.loss.high > max_loss:
            reason += f"; not certain, because its interval ends at {chosen.loss.high:.4f}"
        return chosen, f"{chosen.candidate.name}: {reason}." + _saturated(chosen)
    if best.loss.high is None:
        return best, f"{best.candidate.name}: the lowest loss with {budget}; there are no intervals." + _saturated(best)
    level = [plan for plan in plans if plan.loss.low is not None and plan.loss.low <= _loss(best)]
    chosen = min(level, key=lambda plan: plan.candidate.case.pruned_size)
    if chosen is best:
        reason = f"the lowest loss with {budget}"
    else:
        reason = f"the smallest of {len(level)} that the intervals can not tell from the lowest loss with {budget}"
    return chosen, f"{chosen.candidate.name}: {reason}." + _saturated(chosen)


def _loss(plan: CandidatePlan) -> float:
    assert plan.loss.value is not None, "a law predicts a loss at any number of tokens"
    return plan.loss.value


def _way_out(plan: CandidatePlan, max_loss: float) -> str:
    if plan.target is None or plan.target.value is None:
        return str(plan.target)
    needed, paid = number_text(plan.target.value), number_text(plan.recovery_tokens)
    return f"it needs {needed} recovery tokens, and the budget pays for {paid}"


def _saturated(plan: CandidatePlan) -> str:
    if plan.saturation.value is None or plan.recovery_tokens <= plan.saturation.value:
        return ""
    return (
        f" It is saturated at {number_text(plan.saturation.value)} tokens, and the budget pays for"
        f" {number_text(plan.recovery_tokens)}: a part of it is better spent on a larger model."
    )
