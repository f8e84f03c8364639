"""One path for every criterion: calibrate, score, allocate, compensate, slice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from ..compensation import CompensationReport, check_compensation, compensate
from ..data import Calibration
from ..importance import Scores
from ..masks import LAYER
from ..modeling import AutoShearingModelForCausalLM
from ..shapes import TargetShape
from ..slicing import KeptUnits, slice_model
from .allocation import uniform_gates
from .choose_criterion import CriterionChoice, criteria_by_kind
from .protected_layers import protect_layers, protected_layers
from .score import score_units


@dataclass(frozen=True)
class OneShotPruning:
    """What one-shot pruning made.

    Attributes:
        model: a stock model of the target's shape, in evaluation mode.
        kept: the units of the source that it keeps.
        scores: of the last shot, [*rows, units] per kind of unit that lost some; infinite for protected layers.
        compensation: errors of what was compensated, one report per shot.
    """

    model: PreTrainedModel
    kept: KeptUnits
    scores: Scores
    compensation: list[CompensationReport]


def prune_one_shot(
    model: PreTrainedModel,
    target: TargetShape | dict[str, int],
    calibration: Calibration | Iterable[dict[str, Tensor]],
    criterion: CriterionChoice = "taylor",
    compensation: str = "none",
    num_shots: int = 1,
    as_family: str | None = None,
    protect: str | Sequence[int] = (),
) -> OneShotPruning:
    """Prune ``model`` to ``target``: keep what ``criterion`` scores highest, and make up for the rest.

    Args:
        model: a stock or a masked model of a supported family; left as it is.
        target: the shape to reach; any subset of the five names.
        calibration: text to score and compensate on (batches with ``input_ids`` and ``labels``).
        criterion: a name with options (``"taylor"``, ``"flap"``), a function declared by
            ``hf_shear.importance.criterion``, or a dict with one per kind of unit (and ``"default"``).
        compensation: a name with options (``"none"``, ``"least_squares"``, ``"least_squares_bias:towards=source"``; see
            ``hf_shear.compensation.compensate``); the source is ``model``, whatever the shot.
        num_shots: steps in which units are removed; each scores and compensates anew what the ones before left.
        as_family: model_type that the result shall have, as in ``AutoShearingModelForCausalLM.from_pretrained``.
        protect: layers that stay under any criterion: indices, or a text such as "first:4,last:2".

    Raises:
        ValueError: the target does not fit, the criterion cannot rank what is to be removed, or more layers are
            protected than the target keeps.
    """
    calibration = calibration if isinstance(calibration, Calibration) else Calibration(list(calibration))
    if num_shots < 1:
        raise ValueError(f"`num_shots` must be at least 1, but it is {num_shots}.")
    masked = AutoShearingModelForCausalLM.from_model(model, target, as_family=as_family).eval()
    check_compensation(compensation, masked.config)
    whole = AutoShearingModelForCausalLM.from_model(model, as_family=as_family).eval()  # shares the weights
    kinds = [kind.name for kind in masked.masks.constrained]
    criteria_by_kind(criterion, kinds)  # refused before any forward
    layers = masked.masks.kinds[LAYER]
    protected = protected_layers(protect, layers.num_units, layers.num_kept)
    gates, scores, reports = {}, {}, []
    for shot in range(num_shots):
        with masked.use_gates(gates):
            scores = protect_layers(score_units(masked, criterion, calibration, kinds), protected)
            chosen = uniform_gates(scores, masked.masks.kinds, gates, (shot + 1) / num_shots)
            reports.append(compensate(masked, chosen, calibration, compensation, whole))
        gates = chosen
    sliced, kept = slice_model(masked, gates)
    return OneShotPruning(sliced, kept, scores, reports)
