"""The loop of all pruning by scores: score, allocate, compensate, and, once all shots are taken, cut."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PretrainedConfig, PreTrainedModel

from ..compensation import CompensationReport, compensate, resolve_compensation
from ..core import UsageError
from ..criteria import CriterionChoice, Scores, criteria_by_kind
from ..data import Calibration
from ..masks import EXPERT, INTERMEDIATE, LAYER
from ..modeling import AutoShearingModelForCausalLM, ShearingModel, check_model
from ..shapes import count_parameters
from ..slicing import (
    NEMOTRON_NAS,
    KeptUnits,
    count_kept_parameters,
    provenance_record,
    release_weights,
    save_checkpoint,
    save_nemotron_nas,
    slice_model,
    slice_uneven,
)
from .allocation import Shot, kept_by
from .config import PruneConfig
from .cost import CalibrationCost
from .plan import PruningPlan, Target, make_plan, protect_layers

LEAST_SQUARES = resolve_compensation("least_squares")
Gates = dict[str, Tensor]  # 0 or 1, [*rows, units] by kind


@dataclass(frozen=True)
class OneShotPruning:
    """What pruning made.

    Attributes:
        model: a stock model, in evaluation mode: of the target's shape, or of the largest layer's, with zeros where
            others are narrower.
        kept: the units of the source that it keeps.
        config: the choices that it was made by.
        masked_config: of the masked model that was cut.
        scores: of the last shot, [*rows, units] per kind of unit that lost some; infinite for protected layers.
        compensation: errors of what was compensated, one report per shot; perhaps also of layers that it then removed.
        num_parameters: of the kept units, without padding; never above a budget.
        budget: parameters that were allowed; None where a shape was the target.
        uneven: whether layers were free to end with different widths.
        cost: of calibration, all shots together.
    """

    model: PreTrainedModel
    kept: KeptUnits
    config: PruneConfig
    masked_config: PretrainedConfig
    scores: Scores
    compensation: list[CompensationReport]
    num_parameters: int
    budget: int | None
    uneven: bool
    cost: CalibrationCost

    @property
    def num_padded_parameters(self) -> int:
        """Parameters of ``model``, padding included."""
        return self.model.num_parameters()

    def save(
        self,
        output_dir: str | os.PathLike,
        processing_class=None,
        dtype: torch.dtype | None = None,
        **facts: object,
    ) -> Path:
        """Save the model in the form that the config names, with ``prune_config.json`` and ``shear_provenance.json``.

        Args:
            output_dir, processing_class, dtype: as in ``save_checkpoint``.
            facts: more for the provenance record, JSON-ready.
        """
        record = provenance_record(
            self.masked_config, self.kept, prune_config=self.config.to_dict(), num_parameters=self.num_parameters,
            num_padded_parameters=self.num_padded_parameters, budget=self.budget,
            calibration=self.cost.to_dict(self.model.config), **facts,
        )  # fmt: skip
        if self.config.form == NEMOTRON_NAS:
            assert isinstance(self.model, LlamaForCausalLM)  # the plan refused others
            return save_nemotron_nas(self.model, self.kept, output_dir, processing_class, record)
        return save_checkpoint(self.model, output_dir, processing_class, record, dtype=dtype)


def prune_one_shot(
    model: PreTrainedModel,
    target: Target,
    calibration: Calibration | Iterable[dict[str, Tensor]],
    config: PruneConfig | None = None,
    *,
    release_source: bool = False,
) -> OneShotPruning:
    """Prune ``model`` to ``target`` without training: keep what the criterion scores highest, and make up for the rest.

    Args:
        model: a stock or a masked model of a supported family; left as it is, but for ``release_source``.
        target: the shape to reach, any subset of its names of sizes; or a budget, the largest number of parameters (an int)
            or the share of the source's to keep (a float), embeddings included and tied weights counted once.
        calibration: text to score and compensate on (batches with ``input_ids`` and ``labels``).
        config: all other choices; None: the defaults of ``PruneConfig``.
        release_source: let go of each weight of ``model`` once it is cut, as in ``slice_model``.

    Raises:
        UsageError: as in ``make_plan``, before any forward runs.
    """
    config = PruneConfig() if config is None else config
    if config.pruning_share is not None:
        raise UsageError(
            f"`pruning_share` is of pruning with training in between, but it is {config.pruning_share}. Leave it out, or"
            " call `prune_interleaved`."
        )
    check_model(model)
    calibration = calibration if isinstance(calibration, Calibration) else Calibration(list(calibration))
    largest = max(int(batch["input_ids"].max()) for batch in calibration.batches)
    if largest >= model.config.vocab_size:
        raise UsageError(
            f"`calibration` must hold token ids below the model's vocabulary of {model.config.vocab_size}, but it holds"
            f" {largest}. Tokenise the text with the model's own tokenizer."
        )
    plan = make_plan(model.config, target, config)
    masked = AutoShearingModelForCausalLM.from_model(model, plan.shape, as_family=config.as_family).eval()
    whole = AutoShearingModelForCausalLM.from_model(model, as_family=config.as_family).eval()  # shares the weights
    gates, scores, reports, cost = {}, {}, [], CalibrationCost.on(calibration)
    for shot in range(config.num_shots):
        progress = (shot + 1) / config.num_shots
        gates, scores, report = remove_units(masked, gates, progress, plan, calibration, whole, cost, scores)
        reports.append(report)
    cost.over_ranks(masked.device)
    if release_source:
        for holder in (model, whole):
            release_weights(holder)  # `masked` shares them, and lets go of one after another
    sliced, kept = cut(masked, gates, plan, release_source)
    num_parameters = count_kept_parameters(masked.config, kept)
    return OneShotPruning(
        sliced, kept, config, masked.config, scores, reports, num_parameters, plan.budget, plan.uneven, cost
    )


def remove_units(
    masked: ShearingModel,
    gates: Gates,
    progress: float,
    plan: PruningPlan,
    calibration: Calibration,
    source: ShearingModel | None = None,
    cost: CalibrationCost | None = None,
    known: Scores | None = None,
) -> tuple[Gates, Scores, CompensationReport]:
    """One shot: score the units that are open, choose those that stay, and compensate for the others.

    Args:
        masked: towards ``plan.shape``; the weights that compensation changes are replaced.
        gates: of the units that are open now; {}: all.
        progress: of the way from the source's size (0) to the target's (1) that is gone after this shot.
        plan: what to remove, and how.
        calibration: text.
        source: with masks and all units open, for a compensation that reads it.
        cost: what is computed is added to it.
        known: scores of the shot before: those of a kind that loses nothing in this shot are not computed anew.

    Returns:
        The new gates, the scores, and the errors that compensation left.
    """
    # Scores and compensation see one model: the same weights, gates and text. So A is collected once, and dropped here.
    cost = CalibrationCost.on(calibration) if cost is None else cost
    known = known or {}
    kinds = [kind for kind in plan.kinds if kind not in known or _loses(masked, kind, gates, progress, plan)]
    first = [kind for kind in kinds if not (kind == LAYER and plan.layers_last)]
    last = [LAYER] if plan.layers_last and _loses(masked, LAYER, gates, progress, plan) else []
    scores, report = {kind: score for kind, score in known.items() if kind not in last}, None
    fits_own = plan.compensation.reads_own_inputs or (last and not plan.compensation.does_nothing)
    shared_inputs = {} if fits_own else None
    with masked.use_gates(gates):
        with cost.charge("scores"):  # an allocation may run the model, too
            scores |= score_units(masked, plan.criteria, calibration, first, shared_inputs)
            chosen = gates | _choose(masked, scores, progress, plan, calibration)
        if last:
            trial, report = _trial_cut(masked, chosen, plan, calibration, cost, shared_inputs)
            with cost.charge("scores"), trial.use_gates(chosen):
                found = score_units(trial, plan.criteria, calibration, last)
                scores |= found
                chosen |= _choose(trial, found, progress, plan, calibration)
        if report is None:
            with cost.charge("compensation"):
                report = compensate(masked, chosen, calibration, plan.compensation, source, shared_inputs)
    return chosen, protect_layers(scores, plan.protected_layers), report


def _choose(
    model: ShearingModel, scores: Scores, progress: float, plan: PruningPlan, calibration: Calibration
) -> Gates:
    """The gates that the plan's allocation makes of scores."""
    scores = protect_layers(scores, plan.protected_layers)
    budget = count_parameters(plan.config, plan.shape) if plan.budget is None else plan.budget
    return plan.allocation.choose(
        Shot(model, calibration, scores, progress, plan.comparable, plan.config, budget, plan.protected)
    )


def _trial_cut(
    masked: ShearingModel,
    chosen: Gates,
    plan: PruningPlan,
    calibration: Calibration,
    cost: CalibrationCost,
    shared_inputs: dict | None,
) -> tuple[ShearingModel, CompensationReport | None]:
    """The model in which layers are scored: what ``chosen`` closes is made up for; and the report, if that is final.

    A fit of modules to their own outputs does not depend on which layers stay, so it is final. A fit towards the source
    does: it is made once layers are chosen, and plain least squares takes its place here.
    """
    if plan.compensation.does_nothing:
        return masked, None
    own = plan.compensation.reads_own_inputs
    trial = masked if own else type(masked).from_model(masked, plan.shape).eval()
    with cost.charge("compensation"), trial.use_gates(masked.gates_in_use):
        method = plan.compensation if own else replace(LEAST_SQUARES, store=plan.compensation.store)
        report = compensate(trial, chosen, calibration, method, None, shared_inputs)
    return trial, report if own else None


def _loses(masked: ShearingModel, kind: str, gates: Gates, progress: float, plan: PruningPlan) -> bool:
    """Whether units of a kind are removed on the way to ``progress``; of uneven layers nobody knows before."""
    gate, unit = gates.get(kind), masked.masks.kinds.get(kind)
    if plan.uneven or unit is None:
        return True
    return kept_by(unit, progress) < (unit.num_units if gate is None else int(gate.sum(dim=-1).max()))


def cut(
    masked: ShearingModel, gates: Gates, plan: PruningPlan, release_source: bool = False
) -> tuple[PreTrainedModel, KeptUnits]:
    """The stock model of the open units, and which they are."""
    return (slice_uneven if plan.uneven else slice_model)(masked, gates, release_source=release_source)


def score_units(
    model: ShearingModel,
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
                asked = [other for other, one in chosen.items() if one == criterion]
                known = criterion(model, calibration, shared_inputs, asked)
                found.append((criterion, known))
            scores[kind] = known[kind].float()
    bad = [kind for kind, score in scores.items() if not bool(torch.isfinite(score).all())]
    if bad:
        raise UsageError(
            f"The scores are not finite for {bad}: the source gives NaN or infinite values on the calibration text."
            " Check the checkpoint and its dtype (float16 often overflows; bfloat16 or float32 does not)."
        )
    return scores
