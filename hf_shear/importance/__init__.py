"""What importance is measured by, and how a criterion is declared."""

from .criterion import Criterion, Scores, criterion, name_of, ranks_of
from .layer_loss_rise import layer_loss_rise
from .mask_start import mask_start_importance
from .removal_costs import RemovalCosts, removal_costs
from .taylor import random_importance, taylor_importance

__all__ = [
    "Criterion",
    "RemovalCosts",
    "Scores",
    "criterion",
    "layer_loss_rise",
    "mask_start_importance",
    "name_of",
    "random_importance",
    "ranks_of",
    "removal_costs",
    "taylor_importance",
]
