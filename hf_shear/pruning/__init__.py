"""Prune by scores: score, allocate, compensate, cut; at once, or with training in between."""

from .allocation import ALLOCATIONS, Allocation, Shot
from .config import PruneConfig, default_criterion_words
from .interleave import InterleavedPruning, InterleavedTrainer, prune_interleaved, pruning_steps
from .open_units import OpenUnits, Unit
from .plan import PruningPlan, make_plan
from .prune import OneShotPruning, prune_one_shot, score_units

__all__ = [
    "ALLOCATIONS",
    "Allocation",
    "InterleavedPruning",
    "InterleavedTrainer",
    "OneShotPruning",
    "OpenUnits",
    "PruneConfig",
    "PruningPlan",
    "Shot",
    "Unit",
    "default_criterion_words",
    "make_plan",
    "prune_interleaved",
    "prune_one_shot",
    "pruning_steps",
    "score_units",
]
