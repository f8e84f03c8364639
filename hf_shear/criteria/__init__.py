"""Criteria: what units are ranked by. A file holds a criterion's declaration and its measure."""

from .coupled_weights import open_units, sum_over_units, values_of, write_weights
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
    "open_units",
    "resolve_criterion",
    "sum_over_units",
    "values_of",
    "weight_gradients",
    "write_weights",
]
