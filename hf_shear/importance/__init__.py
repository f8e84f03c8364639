"""What importance is measured by, and how a criterion is declared."""

from .criterion import Criterion, Scores, criterion, is_comparable_across_layers, name_of, ranks_of
from .layer_influence import layer_influence
from .layer_loss_rise import layer_loss_rise
from .mask_start import mask_start_importance
from .removal_costs import RemovalCosts, removal_costs
from .sub_layer_loss_rise import sub_layer_loss_rise
from .taylor import random_importance, taylor_importance

__all__ = [
    "Criterion",
    "RemovalCosts",
    "Scores",
    "criterion",
    "is_comparable_across_layers",
    "layer_influence",
    "layer_loss_rise",
    "mask_start_importance",
    "name_of",
    "random_importance",
    "ranks_of",
    "removal_costs",
    "sub_layer_loss_rise",
    "taylor_importance",
]
