"""Mask learning as one arm among others: a masked copy of the source, and how its stage differs from recovery."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ..criteria import mask_start_importance
from ..masks import START_SPREAD, STRATEGIES, MaskSettings
from ..modeling import AutoShearingModelForCausalLM, ShearingModel
from ..shapes import TargetShape
from ..training import PAPER_MASK_LEARNING
from .pipeline_arguments import MASK_STARTS, PAPER

ARM_DEFAULTS = {"masks": "relaxed_topk", "start": "taylor", "weights": "trained"}
ARM_CHOICES = {"masks": (*STRATEGIES, PAPER), "start": MASK_STARTS, "weights": ("trained", "frozen")}
"""How masks are learned: which constraint, from which start, and whether the weights learn with them."""


def mask_stage(paper: bool) -> dict[str, Any]:
    """The fields of ``ShearTrainingArguments`` that mask learning changes, as the paper does or as this library does."""
    constant = {"lr_scheduler_type": "constant_with_warmup", "lr_scheduler_kwargs": {}}
    return dict(PAPER_MASK_LEARNING) if paper else constant


def masked_arm(
    source: PreTrainedModel,
    target: TargetShape,
    seed: int,
    batches: Iterable[dict[str, Tensor]],
    masks: str = ARM_DEFAULTS["masks"],
    start: str = ARM_DEFAULTS["start"],
    weights: str = ARM_DEFAULTS["weights"],
) -> tuple[ShearingModel, dict]:
    """A masked copy of ``source``, and the fields of ``ShearTrainingArguments`` that its stage changes.

    Args:
        source: left as it is.
        batches: calibration text, for a start from Taylor scores.
        masks: "relaxed_topk", "hard_concrete" or "paper", which sets everything as the paper does, the start too.
        start: "taylor" or "uniform".
        weights: "trained" with the masks or "frozen" meanwhile.
    """
    paper = masks == PAPER
    settings = MaskSettings.paper(seed) if paper else MaskSettings(masks, seed)
    masked = AutoShearingModelForCausalLM.from_model(copy.deepcopy(source), target, settings)
    if start == "taylor" and not paper:
        masked.masks.start_from_importance(mask_start_importance(masked, batches), START_SPREAD)
    stage = mask_stage(paper)
    if weights == "frozen":
        stage["learning_rate"] = 0.0  # masks have a rate of their own
    return masked, stage
