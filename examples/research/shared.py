"""What several studies and pages share: means and intervals over seeds, sweeps of learning rates, text between marks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from hf_shear.report import PairedDifference, paired_difference

RESEARCH = Path(__file__).resolve().parent
EXAMPLES, ROOT = RESEARCH.parent, RESEARCH.parent.parent

TOKENS, FLOPS = "tokens", "FLOPs"
"""What arms that are compared have equal."""
HELD, TIE, LOST, UNKNOWN = "held", "tie", "not held", "no verdict"


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


def difference(lower: Sequence[float], higher: Sequence[float]) -> PairedDifference:
    """How far ``lower`` is below ``higher``, in pairs of one seed each; a single ``higher`` is a limit for all seeds."""
    return paired_difference(lower, list(higher) * len(lower) if len(higher) == 1 else higher)


def state_of(lower: Sequence[float], higher: Sequence[float]) -> str:
    """HELD if the 95 % interval of the paired differences puts ``lower`` below ``higher``, LOST if above, else a TIE.

    One seed has no interval: UNKNOWN.
    """
    found = difference(lower, higher)
    if found.low is None:
        return UNKNOWN
    return HELD if found.is_ahead else LOST if found.is_behind else TIE


# Which learning rates a sweep tries: from one rate outwards, until the best lies between two others

STEP, MAX_RATES = 2.0, 9
"""Between neighbouring rates, and how many one sweep tries at most."""


def best_rate(found: dict[float, float | None]) -> float:
    """The rate with the lowest loss, which is None where training diverged; the lowest rate if all did."""
    return min(found, key=lambda rate: (math.inf if found[rate] is None else found[rate], rate))


def loss_to_choose_by(run: Mapping[str, Any]) -> float | None:
    """Mean loss on the half of the judged text that chooses rates; on all of it where a run was judged in one piece."""
    return run.get("mean_choice", run["mean"])


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
