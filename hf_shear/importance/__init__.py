"""What importance is measured by, and how a criterion is declared."""

from .activation_sizes import activation_sizes
from .adapter_gradients import adapter_importance
from .coupled_weights import open_units, sum_over_units, values_of, write_weights
from .criterion import (
    Criterion,
    Scores,
    criterion,
    is_comparable_across_layers,
    name_of,
    needs_target_shape,
    ranks_of,
    shares_inputs,
)
from .expert_loss_rise import expert_loss_rise
from .layer_influence import layer_influence
from .layer_loss_rise import layer_loss_rise
from .mask_start import mask_start_importance
from .options import keyword_options, options_from_text
from .policy_gradient import PolicySettings, keep_probabilities
from .removal_costs import RemovalCosts, removal_costs
from .sub_layer_loss_rise import sub_layer_loss_rise
from .taylor import check_taylor_options, random_importance, taylor_importance
from .weight_gradients import weight_gradients

__all__ = [
    "Criterion",
    "PolicySettings",
    "RemovalCosts",
    "Scores",
    "activation_sizes",
    "adapter_importance",
    "check_taylor_options",
    "criterion",
    "expert_loss_rise",
    "is_comparable_across_layers",
    "keep_probabilities",
    "keyword_options",
    "layer_influence",
    "layer_loss_rise",
    "mask_start_importance",
    "name_of",
    "needs_target_shape",
    "open_units",
    "options_from_text",
    "random_importance",
    "ranks_of",
    "removal_costs",
    "shares_inputs",
    "sub_layer_loss_rise",
    "sum_over_units",
    "taylor_importance",
    "values_of",
    "weight_gradients",
    "write_weights",
]
