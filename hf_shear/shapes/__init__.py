"""Shapes: what a source model is, what it shall become, and what either costs in parameters."""

from ..core import SHAPE_NAMES, TARGET_NAMES
from .budget import parameter_budget, shape_for_budget, weighted_distance
from .family import (
    ATTENTION_OUTPUT,
    EXPERTS,
    GROUPS,
    HEADS,
    HIDDEN,
    MLP_OUTPUT,
    NEURONS,
    OUTPUT_PROJECTIONS,
    Axis,
    Family,
    check_supported_source,
    family_named,
    family_of,
    find_family,
    supported_model_types,
)
from .flops import forward_flops_per_token, training_flops_per_token
from .model_shape import NUM_EXPERTS, ModelShape
from .parameter_count import count_parameters
from .per_layer_shape import PerLayerShape, smallest_holding
from .presets import preset_shape
from .shape_config import ShapeAcceptance, as_family, config_for_shape
from .target_shape import TargetShape
from .uneven_count import LayerSizes, count_attention, count_mlp, count_uneven_parameters

__all__ = [
    "ATTENTION_OUTPUT",
    "MLP_OUTPUT",
    "OUTPUT_PROJECTIONS",
    "Axis",
    "EXPERTS",
    "Family",
    "GROUPS",
    "HEADS",
    "HIDDEN",
    "LayerSizes",
    "ModelShape",
    "NEURONS",
    "NUM_EXPERTS",
    "PerLayerShape",
    "SHAPE_NAMES",
    "ShapeAcceptance",
    "TARGET_NAMES",
    "TargetShape",
    "as_family",
    "check_supported_source",
    "config_for_shape",
    "count_attention",
    "count_mlp",
    "count_parameters",
    "count_uneven_parameters",
    "family_named",
    "family_of",
    "find_family",
    "forward_flops_per_token",
    "parameter_budget",
    "preset_shape",
    "shape_for_budget",
    "smallest_holding",
    "supported_model_types",
    "training_flops_per_token",
    "weighted_distance",
]
