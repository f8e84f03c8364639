"""What a measurement says of an engine: the rules that the pages state and tests hold the table of engines to.

They were fixed before the numbers that they judge were made.
"""

from __future__ import annotations

from hf_shear.publishing.engine_rules import ACCEPTED, REFUSED, WRONG, Engine

UNDECIDED = "undecided"  # too few texts to tell: no row of the table rests on it
MAX_LOGIT_DIFFERENCE = 2e-3  # of the logits' standard deviation: still the same function, in float32; 6e-6 is usual
MAX_LOSS_RISE = {8: 0.1, 4: 0.3}
"""Nats per token, by the bits of quantised weights. The models were not trained since the cut."""
STANDARD_ERRORS = 2
"""By how many the rise of the loss must be below its limit (ACCEPTED) or above it (WRONG)."""


def is_judged(engine: Engine, precision: str) -> bool:
    """Whether the precision decides the engine's rows: the first one of floats, all of quantised weights."""
    return precision in (engine.precisions[:1] if engine.base is None else engine.precisions)


def measured(facts: dict, prompts: int, deviation: float, precision: str, is_float: bool) -> str:
    """The verdict that a measurement supports: floats by their logits and text, quantised weights by the loss.

    Args:
        facts: the record of one precision.
        prompts: how many were continued.
        deviation: of the reference's logits.
    """
    if facts["status"] == REFUSED:
        return REFUSED
    if is_float:
        close = facts["max_logit_difference"] < MAX_LOGIT_DIFFERENCE * deviation
        same_text = facts["greedy_equal"] == prompts and facts.get("same_tokens", prompts) == prompts
        return ACCEPTED if close and same_text else WRONG
    (limit,) = (rise for bits, rise in MAX_LOSS_RISE.items() if str(bits) in precision)
    # Records of before the errors were kept are judged without.
    margin = STANDARD_ERRORS * facts.get("loss_difference_se", 0)
    if facts["loss_difference"] + margin < limit:
        return ACCEPTED
    return WRONG if facts["loss_difference"] - margin > limit else UNDECIDED
