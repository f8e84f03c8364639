"""Shapes: what a source model is, what it shall become, and what either costs in parameters."""

from .budget import BudgetChoice, parameter_budget, shape_for_budget
from .model_shape import NUM_EXPERTS, SHAPE_NAMES, TARGET_NAMES, ModelShape
from .parameter_count import count_embedding_parameters, count_parameters
from .presets import PRESETS, preset_shape
from .shape_config import ShapeAcceptance, config_for_shape
from .target_shape import TargetShape
from .uneven_count import LayerSizes, count_attention, count_mlp, count_uneven_parameters

__all__ = [
    "NUM_EXPERTS",
    "PRESETS",
    "SHAPE_NAMES",
    "TARGET_NAMES",
    "BudgetChoice",
    "LayerSizes",
    "ModelShape",
    "ShapeAcceptance",
    "TargetShape",
    "config_for_shape",
    "count_attention",
    "count_embedding_parameters",
    "count_mlp",
    "count_parameters",
    "count_uneven_parameters",
    "parameter_budget",
    "preset_shape",
    "shape_for_budget",
]
