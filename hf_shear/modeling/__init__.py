"""Models with masks."""

from . import family_classes
from .auto_class import AutoShearingModelForCausalLM
from .column_gates import open_columns, written_weight
from .configuration import ShearingConfig, is_masked_config
from .family_classes import *  # noqa: F403  # a pair of classes for each family, listed there
from .folding import MaskedLinear, MaskedRMSNorm, scale_norm_weight, scale_weight
from .mixin import ShearingMixin, head_channel_masks, residual_write_masks
from .shearing_model import ShearingModel, check_model, copy_implementations

__all__ = [
    "AutoShearingModelForCausalLM",
    "MaskedLinear",
    "MaskedRMSNorm",
    "ShearingConfig",
    "ShearingMixin",
    "ShearingModel",
    "check_model",
    "copy_implementations",
    "head_channel_masks",
    "is_masked_config",
    "open_columns",
    "residual_write_masks",
    "scale_norm_weight",
    "scale_weight",
    "written_weight",
]
__all__ += family_classes.__all__
