"""From scores to the units that stay: gates of 0 and 1 per kind of unit."""

from __future__ import annotations

from torch import Tensor

from ..criteria import Scores
from ..masks import UnitKind, hard_topk


def uniform_gates(
    scores: Scores, kinds: dict[str, UnitKind], gates: dict[str, Tensor], progress: float = 1.0
) -> Scores:
    """Every row keeps the same number of its best units: uniform allocation, which a target shape implies.

    Args:
        scores: [*rows, units] per kind of unit that loses some; higher = keep.
        kinds: with the numbers of the target.
        gates: those in use; a unit that is closed there stays closed.
        progress: of the way from the source's numbers (0) to the target's (1), which earlier shots go.

    Returns:
        Gates of 0 and 1, [*rows, units], for each kind of ``scores``.
    """
    chosen = {}
    for name, score in scores.items():
        if name in gates:
            score = score.masked_fill(gates[name] == 0, float("-inf"))
        chosen[name] = hard_topk(score, round(kinds[name].budget(progress)))
    return chosen
