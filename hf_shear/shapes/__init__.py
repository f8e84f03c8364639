"""Shapes: what a source model is, what it shall become, and what either costs in parameters."""

from .budget import BudgetChoice, shape_for_budget
from .model_shape import SHAPE_NAMES, ModelShape
from .parameter_count import count_embedding_parameters, count_parameters
from .presets import PRESETS, preset_shape
from .shape_config import config_for_shape
from .target_shape import TargetShape

__all__ = [
    "PRESETS",
    "SHAPE_NAMES",
    "BudgetChoice",
    "ModelShape",
    "TargetShape",
    "config_for_shape",
    "count_embedding_parameters",
    "count_parameters",
    "preset_shape",
    "shape_for_budget",
]
