"""Criteria: what units are ranked by. A file holds a criterion's declaration and its measure."""

from .coupled_weights import sum_over_units, values_of
from .criterion import Criterion, Scores, criterion
from .mask_start import mask_start_importance
from .registry import (
    CRITERIA,
    DEFAULT_KIND,
    CriterionChoice,
    criteria_by_kind,
    criteria_from_words,
    resolve_criterion,
)
from .weight_gradients import weight_gradients

__all__ = [
    "CRITERIA",
    "Criterion",
    "CriterionChoice",
    "DEFAULT_KIND",
    "Scores",
    "criteria_by_kind",
    "criteria_from_words",
    "criterion",
    "mask_start_importance",
    "resolve_criterion",
    "sum_over_units",
    "values_of",
    "weight_gradients",
]
