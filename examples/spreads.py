"""Mean and spread over seeds, as every page shows them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev


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
