"""What several studies and pages share: means and spreads over seeds, sweeps of learning rates, text between marks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

RESEARCH = Path(__file__).resolve().parent
EXAMPLES, ROOT = RESEARCH.parent, RESEARCH.parent.parent

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


# Which learning rates a sweep tries: from one rate outwards, until the best lies between two others

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


# Pictures, in the 256 colours that serve them: a third of the bytes


def save_picture(figure, path: Path, dpi: int) -> None:
    """Write a matplotlib figure as PNG."""
    figure.savefig(path, dpi=dpi)
    few_colours(path)


def few_colours(path: Path) -> None:
    """Write a PNG anew with a palette of its own."""
    from PIL import Image

    with Image.open(path) as picture:
        found = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    found.save(path, optimize=True)


# Pages of which a script writes one part, and a person the rest


def put_between(text: str, marks: tuple[str, str], inner: str) -> str:
    """``text`` with what is between the two marks replaced by ``inner``.

    Raises:
        ValueError: a mark is missing, or they are not in this order.
    """
    before, _, rest = text.partition(marks[0])
    _, found, after = rest.partition(marks[1])
    if not found:
        raise ValueError(f"The text needs the marks {marks}, in this order.")
    return before + marks[0] + inner + marks[1] + after
