"""hf_shear: make a pretrained Llama small, and strong again."""

from .data import DynamicBatchSampler
from .masks import MaskSettings
from .modeling import ShearingLlamaConfig, ShearingLlamaForCausalLM
from .shapes import TargetShape
from .slicing import slice_model
from .training import ShearTrainer, ShearTrainingArguments

__version__ = "0.1.0"

__all__ = [
    "DynamicBatchSampler",
    "MaskSettings",
    "ShearTrainer",
    "ShearTrainingArguments",
    "ShearingLlamaConfig",
    "ShearingLlamaForCausalLM",
    "TargetShape",
    "slice_model",
]
