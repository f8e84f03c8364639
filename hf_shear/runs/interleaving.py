"""Interleaved pruning: the criteria and compensations of one-shot pruning as the stages of one training."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..compensation import SOURCE, add_biases, check_compensation, compensate, reads_own_inputs, resolve_compensation
from ..criteria import CriterionChoice, criteria_by_kind
from ..data import Calibration
from ..distillation import sampled_digest
from ..modeling import AutoShearingModelForCausalLM, ShearingModel
from ..pruning import DEFAULT_COMPENSATION, DEFAULT_CRITERION, score_units, uniform_gates
from ..shapes import TargetShape
from ..slicing import KeptUnits, slice_model
from ..training import PRUNING_SHARE, InterleavedTrainer, ShearTrainingArguments
from ..training.same_run import DIGEST


@dataclass(frozen=True)
class InterleavedPruning:
    """What interleaved pruning made.

    Attributes:
        model: a stock model of the target's shape, trained, in evaluation mode.
        kept: the units of the source that it keeps.
        trainer: after training; its ``gates`` are those of the last stage.
    """

    model: PreTrainedModel
    kept: KeptUnits
    trainer: InterleavedTrainer


def prune_interleaved(
    model: PreTrainedModel,
    target: TargetShape | dict[str, int],
    calibration: Calibration,
    args: ShearTrainingArguments,
    train_dataset: Mapping,
    eval_dataset: Mapping | None = None,
    *,
    criterion: CriterionChoice = DEFAULT_CRITERION,
    compensation: str = DEFAULT_COMPENSATION,
    num_stages: int = 5,
    pruning_share: float = PRUNING_SHARE,
    restart_moments: bool = True,
    as_family: str | None = None,
    resume_from_checkpoint: str | bool | None = None,
) -> InterleavedPruning:
    """Prune ``model`` to ``target`` in stages, and train it in between and after, on ``args.num_tokens`` in all.

    Args:
        model: a stock or a masked Llama; left as it is.
        target, calibration, criterion, compensation, as_family: as in ``prune_one_shot``, with the same defaults; every
            stage scores and compensates anew, so that these are its shots, with training in between.
        args, train_dataset, eval_dataset: as for ``ShearTrainer``.
        num_stages, pruning_share, restart_moments: as for ``InterleavedTrainer``.
        resume_from_checkpoint: as for ``Trainer.train``.

    Raises:
        ValueError: as in ``prune_one_shot`` and ``InterleavedTrainer``; before any training.
    """
    method = resolve_compensation(compensation)
    masked = AutoShearingModelForCausalLM.from_model(copy.deepcopy(model), as_family=as_family).to(args.device)
    check_compensation(compensation, masked.config)
    if method is not None and method.needs_bias:
        add_biases(masked)
    source = copy.deepcopy(masked).eval() if method is not None and method.towards == SOURCE else None
    masks = AutoShearingModelForCausalLM.from_model(masked, target).masks
    kinds = [kind.name for kind in masks.constrained]
    criteria = criteria_by_kind(criterion, kinds, masked.family)
    choices = {
        "target shape": masks.target.sizes(),
        "criterion": {kind: found.name for kind, found in criteria.items()},
        "compensation": compensation,
        "calibration seed": calibration.seed,
        "the calibration text": DIGEST + calibration.digest(),
    } | ({} if source is None else {"the source": DIGEST + sampled_digest(source)})

    def prune(now: ShearingModel, gates: dict[str, Tensor], progress: float) -> dict[str, Tensor]:
        twin = AutoShearingModelForCausalLM.from_model(now, target).eval()
        with twin.use_gates(gates):
            shared_inputs = {} if reads_own_inputs(compensation) else None
            scores = score_units(twin, criterion, calibration, kinds, shared_inputs)
            chosen = uniform_gates(scores, twin.masks.kinds, gates, progress)
            compensate(twin, chosen, calibration, compensation, source, shared_inputs)
        _copy_weights(twin, now)
        return chosen

    trainer = InterleavedTrainer(
        masked, args, train_dataset, eval_dataset, prune=prune, num_stages=num_stages, pruning_share=pruning_share,
        restart_moments=restart_moments, choices=choices,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    sliced, kept = slice_model(AutoShearingModelForCausalLM.from_model(trainer.masked_model, target), trainer.gates)
    return InterleavedPruning(sliced, kept, trainer)


@torch.no_grad()
def _copy_weights(twin: ShearingModel, model: ShearingModel) -> None:
    """Into the parameters that the optimizer knows, what compensation replaced in a twin that shares the others."""
    new = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.data_ptr() != new[name].data_ptr():
            parameter.copy_(new[name])
