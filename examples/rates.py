"""Which learning rates a sweep tries: from one rate outwards, until the best lies between two others."""

from __future__ import annotations

import math

STEP, MAX_RATES = 2.0, 9
"""Between neighbouring rates, and how many one sweep tries at most."""


def best_rate(found: dict[float, float | None]) -> float:
    """The rate with the lowest loss, which is None where training diverged; the lowest rate if all did."""
    return min(found, key=lambda rate: (math.inf if found[rate] is None else found[rate], rate))


def next_rates(found: dict[float, float | None], around: float | None = None) -> list[float]:
    """Rates to try next: neighbours of one that are not there yet; none if both are, or enough were tried.

    Args:
        found: loss by learning rate.
        around: one of them (default: the best).
    """
    middle = best_rate(found) if around is None else around
    wanted = [rate for rate in (middle / STEP, middle * STEP) if not any(math.isclose(rate, other) for other in found)]
    return wanted if len(found) + len(wanted) <= MAX_RATES else []
