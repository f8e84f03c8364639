"""Score the units of each kind by the criterion chosen for it."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

import torch

from ..core import UsageError
from ..data import Calibration
from ..importance import Criterion, Scores, shares_inputs
from ..masks import EXPERT, INTERMEDIATE
from ..modeling import ShearingMixin
from .choose_criterion import CriterionChoice, criteria_by_kind


def score_units(
    model: ShearingMixin,
    choice: CriterionChoice,
    calibration: Calibration,
    kinds: Collection[str],
    shared_inputs: dict | None = None,
) -> Scores:
    """Scores of the units of ``kinds``, each by its criterion, all gates open but those in use.

    Args:
        model: a masked model; left as it is.
        choice: as in ``criteria_by_kind``.
        kinds: those to score. A dense model has no experts and a mixture no neurons to score: of these two, the kind that
            it has not is left out, so that ``ranks_of`` a criterion will do for both.
        shared_inputs: filled by a criterion that shares what ``compensate`` collects, too; None: nothing is kept.

    Returns:
        float32 [*rows, units] per kind; higher = keep.

    Raises:
        ValueError: as in ``criteria_by_kind``; or scores that are not finite.
    """
    absent = INTERMEDIATE if model.family.has_experts else EXPERT
    chosen = criteria_by_kind(choice, [kind for kind in kinds if kind != absent], model.family)
    found = []  # (criterion, its scores): one call for all the kinds that it ranks
    scores = {}
    with model.use_gates(model.gates_in_use):
        for kind, function in chosen.items():
            known = next((result for done, result in found if done is function or _same(done, function)), None)
            if known is None:
                sharing = shared_inputs is not None and shares_inputs(function)
                known = function(model, calibration, *([shared_inputs] if sharing else []))
                found.append((function, known))
            scores[kind] = known[kind].float()
    bad = [kind for kind, score in scores.items() if not bool(torch.isfinite(score).all())]
    if bad:
        raise UsageError(
            f"The scores are not finite for {bad}: the source gives NaN or infinite values on the calibration text."
            " Check the checkpoint and its dtype (float16 often overflows; bfloat16 or float32 does not)."
        )
    return scores


def _same(one: Criterion, other: Criterion) -> bool:
    if not (isinstance(one, partial) and isinstance(other, partial)):
        return False
    return one.func is other.func and one.keywords == other.keywords
