"""Prune by scores: score, allocate, compensate, cut; at once, or with training in between."""

from .config import PruneConfig
from .interleave import prune_interleaved, pruning_steps
from .nested import NestedSizes, NestedTrainer, nested_shapes, rank_nested
from .plan import make_plan
from .prune import OneShotPruning, prune_one_shot, score_units

__all__ = [
    "NestedSizes",
    "NestedTrainer",
    "OneShotPruning",
    "PruneConfig",
    "make_plan",
    "nested_shapes",
    "prune_interleaved",
    "prune_one_shot",
    "pruning_steps",
    "rank_nested",
    "score_units",
]
