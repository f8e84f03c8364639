"""Whether another shape of the same source, cut anew, would be the better use of the FLOPs that a run has left.

The FLOPs that the run would still take pay for tokens of the other shape, from its cut on. Where these end is the law's own
prediction for it. A shape of a search that was trained there is predicted at the level that it had then. The level of the
run itself is not carried over to other fractions: on the kept runs that made predictions worse.

Said is only what the 80 % intervals make certain: another shape ends lower than this run. With a target loss that is said
where this run is certain to miss the target; otherwise it is said that a smaller shape reaches the target.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..core import UsageError, read_json_object
from ..core.defaults import SEARCH_NAME
from .estimates import Estimate, number_text
from .law_fit import MAX_FACTOR, LawFit
from .planning import Candidate
from .recovery_run import Case, RecoveryRun

FRACTIONS = tuple(number / 20 for number in range(1, 20))
"""Removed by the shapes that are compared without a search, as far as the law was fitted to such."""
SAME_SIZE = 0.01
"""Relative difference of two numbers of parameters up to which shapes count as equally large."""


@dataclass(frozen=True)
class Alternative:
    """A shape, and the law that predicts it."""

    candidate: Candidate
    law: LawFit


@dataclass(frozen=True)
class BetterUse:
    """A shape that ends better than the run with what the run has left.

    Attributes:
        candidate: the shape.
        loss: where it ends.
        size: against the run's shape: "smaller", "larger" or "as large".
    """

    candidate: Candidate
    loss: Estimate
    size: str

    def __str__(self) -> str:
        name, number = self.candidate.name, number_text(self.candidate.case.pruned_size)
        return (
            f"another shape would be the better use of what is left: {name} ({self.size}, {number} parameters), cut anew,"
            f" ends at {self.loss.with_level()}"
        )


def other_fractions(law: LawFit, case: Case) -> list[Alternative]:
    """Shapes of the same source with other fractions removed, as many as the law was fitted to."""
    low, high = law.fitted["fraction_removed"]
    asked = [fraction for fraction in FRACTIONS if low / MAX_FACTOR <= fraction <= high * MAX_FACTOR]
    cases = [replace(case, fraction_removed=fraction, num_pruned_parameters=None) for fraction in asked]
    return [Alternative(Candidate(f"-{one.fraction_removed:.0%}", one), law) for one in cases]


def searched_shapes(path: str | os.PathLike, law: LawFit, case: Case) -> list[Alternative]:
    """The shapes that ``hf-shear search`` found; those that it trained are at the level that they had then.

    Args:
        path: of ``search.json``, or of its folder.

    Raises:
        UsageError: it is no finished search, or one of a larger source.
    """
    place = Path(path) / SEARCH_NAME if Path(path).is_dir() else Path(path)
    fix = "Name the search.json of a finished `hf-shear search` of this source."
    found = []
    for row in read_json_object(place, "`search`", fix, needs=("candidates",))["candidates"]:
        missing = [name for name in ("sizes", "costs", "recovered_rise", "recovery_tokens") if name not in row]
        if missing:
            raise UsageError(f"A shape of `search` {str(place)!r} lacks {', '.join(missing)}. {fix}")
        number = row["costs"]["num_parameters"]
        if not 0 < number < case.num_parameters:
            raise UsageError(
                f"`search` {str(place)!r} has a shape of {number:,} parameters, but the source has"
                f" {case.num_parameters:,.0f}. {fix}"
            )
        own = replace(case, fraction_removed=1 - number / case.num_parameters, num_pruned_parameters=number)
        name = "/".join(str(value) for value in row["sizes"].values())
        level = law
        if row["recovery_tokens"]:
            losses = [case.source_loss + row["recovered_rise"]]
            level = law.anchored(RecoveryRun(name, own, [row["recovery_tokens"]], losses))
        found.append(Alternative(Candidate(name, own), level))
    return found


def predicted_ends(alternatives: Sequence[Alternative], flops: float) -> list[tuple[Candidate, Estimate]]:
    """Each shape, and where it ends after ``flops``."""
    return [(one.candidate, one.law.predict(one.candidate.case, flops / one.candidate.recovery_cost))
            for one in alternatives]  # fmt: skip


def better_use(
    ends: Sequence[tuple[Candidate, Estimate]], case: Case, end: Estimate, target_loss: float | None = None
) -> BetterUse | None:
    """The shape that is certain to be the better use of what is left; None where none is.

    Args:
        ends: other shapes, from :func:`predicted_ends` with the FLOPs that are left.
        case: the model of this run.
        end: the loss at which this run ends, with its interval.
        target_loss: nats per token that are enough.
    """
    assert end.low is not None, "forecasts have intervals"
    lowest = target_loss is None or end.low > target_loss
    found = []
    for candidate, loss in ends:
        ratio = candidate.case.pruned_size / case.pruned_size
        size = "smaller" if ratio < 1 - SAME_SIZE else "larger" if ratio > 1 + SAME_SIZE else "as large"
        limit = end.low if target_loss is None or lowest else target_loss
        if loss.high is not None and loss.high < limit and (lowest or size == "smaller"):
            found.append(BetterUse(candidate, loss, size))

    def rank(one: BetterUse) -> float:
        return one.loss.value or 0.0 if lowest else one.candidate.case.pruned_size

    return min(found, key=rank, default=None)
