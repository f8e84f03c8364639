"""Score the units of each kind by the criterion chosen for it."""

from __future__ import annotations

from collections.abc import Collection

import torch

from ..core import UsageError
from ..criteria import CriterionChoice, Scores, criteria_by_kind
from ..data import Calibration
from ..masks import EXPERT, INTERMEDIATE
from ..modeling import ShearingMixin


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
            it has not is left out, so that a criterion's ``ranks`` will do for both.
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
        for kind, criterion in chosen.items():
            known = next((result for done, result in found if done == criterion), None)
            if known is None:
                known = criterion(model, calibration, shared_inputs)
                found.append((criterion, known))
            scores[kind] = known[kind].float()
    bad = [kind for kind, score in scores.items() if not bool(torch.isfinite(score).all())]
    if bad:
        raise UsageError(
            f"The scores are not finite for {bad}: the source gives NaN or infinite values on the calibration text."
            " Check the checkpoint and its dtype (float16 often overflows; bfloat16 or float32 does not)."
        )
    return scores
