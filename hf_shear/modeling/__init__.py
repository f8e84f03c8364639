"""Models with masks."""

from .configuration import ShearingLlamaConfig
from .folding import MaskedEmbedding, MaskedLinear, MaskedRMSNorm, scale_weight
from .mixin import ShearingCausalLMOutput, ShearingMixin, head_channel_masks, residual_write_masks
from .shearing_llama import SUPPORTED_MODEL_TYPES, ShearingLlamaForCausalLM, check_supported_source

__all__ = [
    "SUPPORTED_MODEL_TYPES",
    "MaskedEmbedding",
    "MaskedLinear",
    "MaskedRMSNorm",
    "ShearingCausalLMOutput",
    "ShearingLlamaConfig",
    "ShearingLlamaForCausalLM",
    "ShearingMixin",
    "check_supported_source",
    "head_channel_masks",
    "residual_write_masks",
    "scale_weight",
]
