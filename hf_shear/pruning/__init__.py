"""Prune by scores: score, allocate, compensate, cut; at once, or with training in between."""

from .config import PruneConfig
from .interleave import prune_interleaved, pruning_steps
from .plan import make_plan
from .prune import OneShotPruning, prune_one_shot, score_units

__all__ = [
    "OneShotPruning",
    "PruneConfig",
    "make_plan",
    "prune_interleaved",
    "prune_one_shot",
    "pruning_steps",
    "score_units",
]
