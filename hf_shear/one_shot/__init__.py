"""Prune at once: calibrate, score, allocate, compensate, slice."""

from .allocation import uniform_gates
from .choose_criterion import CriterionChoice, criteria_by_kind, criteria_from_words, criterion_names, resolve_criterion
from .prune import OneShotPruning, prune_one_shot
from .score import score_units

__all__ = [
    "CriterionChoice",
    "OneShotPruning",
    "criteria_by_kind",
    "criteria_from_words",
    "criterion_names",
    "prune_one_shot",
    "resolve_criterion",
    "score_units",
    "uniform_gates",
]
