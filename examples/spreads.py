"""Mean and spread over seeds, as every page shows and judges them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

HELD, TIE, LOST = "held", "tie", "not held"


def spread_of(values: Sequence[float]) -> float:
    """Sample standard deviation; 0 for a single value."""
    return stdev(values) if len(values) > 1 else 0.0


def mean_and_spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean ± sample standard deviation; a single value alone."""
    mean = f"{fmean(values):.{digits}f}"
    return f"{mean} ± {spread_of(values):.{digits}f}" if len(values) > 1 else mean


def percent(values: Sequence[float]) -> str:
    """The same of shares, in percent."""
    return f"{mean_and_spread([100 * value for value in values], 1)} %"


def state_of(lower: Sequence[float], higher: Sequence[float]) -> str:
    """HELD if the mean of ``lower`` is below that of ``higher`` by more than either spread over the seeds.

    A difference within the larger of the two sample standard deviations is a TIE.
    """
    gap, spread = fmean(higher) - fmean(lower), max(spread_of(lower), spread_of(higher))
    return TIE if abs(gap) <= spread else HELD if gap > 0 else LOST
