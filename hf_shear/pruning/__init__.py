"""Prune at once: calibrate, score, allocate, compensate, slice."""

from .adaptive_allocation import close_by_influence
from .allocation import uniform_gates
from .defaults import DEFAULT_COMPENSATION, DEFAULT_CRITERION, DEFAULT_NUM_SHOTS, default_criterion_words
from .global_allocation import close_cheapest
from .open_units import OpenUnits, Unit
from .plan import ALLOCATIONS, UNIFORM, Plan, make_plan
from .prune import OneShotPruning, prune_one_shot
from .score import score_units

__all__ = [
    "ALLOCATIONS",
    "DEFAULT_COMPENSATION",
    "DEFAULT_CRITERION",
    "DEFAULT_NUM_SHOTS",
    "OneShotPruning",
    "OpenUnits",
    "Plan",
    "UNIFORM",
    "Unit",
    "close_by_influence",
    "close_cheapest",
    "default_criterion_words",
    "make_plan",
    "prune_one_shot",
    "score_units",
    "uniform_gates",
]
