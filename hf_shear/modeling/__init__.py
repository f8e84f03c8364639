"""Models with masks."""

from . import configuration, shearing_models
from .column_gates import open_columns, written_weight
from .configuration import ShearingConfig, as_family, is_masked_config, shearing_config_class
from .folding import MaskedEmbedding, MaskedLinear, MaskedRMSNorm, scale_norm_weight, scale_weight
from .mixin import ShearingCausalLMOutput, ShearingMixin, head_channel_masks, residual_write_masks
from .shearing_model import ShearingModel, check_model, check_supported_source
from .shearing_models import AutoShearingModelForCausalLM, shearing_class

__all__ = [
    "AutoShearingModelForCausalLM",
    "MaskedEmbedding",
    "MaskedLinear",
    "MaskedRMSNorm",
    "ShearingCausalLMOutput",
    "ShearingConfig",
    "ShearingMixin",
    "ShearingModel",
    "as_family",
    "check_model",
    "check_supported_source",
    "head_channel_masks",
    "is_masked_config",
    "open_columns",
    "residual_write_masks",
    "scale_norm_weight",
    "scale_weight",
    "shearing_class",
    "shearing_config_class",
    "written_weight",
]

# One class of configs and one of models per family, such as ShearingQwen3Config and ShearingQwen3ForCausalLM.
for _module in (configuration, shearing_models):
    for _name in [name for name in vars(_module) if name.startswith("Shearing")]:
        if _name not in globals():
            globals()[_name] = getattr(_module, _name)
            __all__.append(_name)
