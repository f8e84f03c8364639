"""Two arms over the same seeds: how far one is below the other, and how sure that is.

Arms of one seed share its text, its order and its draws, so that they are compared pair by pair: what moves both of a pair
says nothing of the difference.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from ..core import UsageError

COVERAGE = 0.95
"""Share of such intervals that hold the mean of all seeds, if the differences are normally distributed."""


class PairedDifference(NamedTuple):
    """The second arm less the first, from one pair for each seed.

    Attributes:
        mean: above 0 if the first arm is lower.
        low, high: ends of the interval of Student's t over the seeds; None for one seed, which says nothing of others.
    """

    mean: float
    low: float | None
    high: float | None

    @property
    def is_ahead(self) -> bool:
        """Whether the first arm is lower, and 0 is not in the interval."""
        return self.low is not None and self.low > 0

    @property
    def is_behind(self) -> bool:
        """Whether the first arm is higher, and 0 is not in the interval."""
        return self.high is not None and self.high < 0

    def text(self, digits: int = 3, sign: str = "-") -> str:
        """As "0.120 (0.080 to 0.160)"; the mean alone without an interval. ``sign="+"`` shows signs above 0 as well."""
        mean, *ends = (f"{end:{sign}.{digits}f}" for end in self if end is not None)
        return f"{mean} ({' to '.join(ends)})" if ends else mean


def paired_difference(first: Sequence[float], second: Sequence[float]) -> PairedDifference:
    """How far ``first`` is below ``second``, which are in the same order of seeds.

    Raises:
        ValueError: there are no seeds, or not as many in one as in the other.
    """
    from scipy.stats import t

    if not first or len(first) != len(second):
        raise UsageError(
            f"Arms are compared seed by seed, but one has {len(first)} seed(s) and the other {len(second)}. Give the same."
        )
    differences = [other - own for own, other in zip(first, second, strict=True)]
    mean = statistics.fmean(differences)
    if len(differences) == 1:
        return PairedDifference(mean, None, None)
    error = statistics.stdev(differences) / len(differences) ** 0.5
    reach = float(t.ppf((1 + COVERAGE) / 2, len(differences) - 1)) * error
    return PairedDifference(mean, mean - reach, mean + reach)
