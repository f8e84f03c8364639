"""hf_shear: make a pretrained Llama small, and strong again."""

from .data import DynamicBatchSampler
from .masks import MaskSettings
from .modeling import (
    AutoShearingModelForCausalLM,
    ShearingLlamaConfig,
    ShearingLlamaForCausalLM,
    ShearingMistralForCausalLM,
    ShearingQwen2ForCausalLM,
    ShearingQwen3ForCausalLM,
)
from .pruning import PruneConfig, prune_one_shot
from .shapes import TargetShape
from .slicing import slice_model
from .training import ShearTrainer, ShearTrainingArguments

__version__ = "0.1.0"

__all__ = [
    "AutoShearingModelForCausalLM",
    "DynamicBatchSampler",
    "MaskSettings",
    "PruneConfig",
    "ShearTrainer",
    "ShearTrainingArguments",
    "ShearingLlamaConfig",
    "ShearingLlamaForCausalLM",
    "ShearingMistralForCausalLM",
    "ShearingQwen2ForCausalLM",
    "ShearingQwen3ForCausalLM",
    "TargetShape",
    "prune_one_shot",
    "slice_model",
]
