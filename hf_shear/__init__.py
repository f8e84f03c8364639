"""hf_shear: make a pretrained Llama small, and strong again."""

from .data import Calibration, DynamicBatchSampler, load_domains, pack_domains, split_domains
from .distillation import Teacher
from .masks import MaskSettings
from .modeling import (
    AutoShearingModelForCausalLM,
    ShearingLlamaConfig,
    ShearingLlamaForCausalLM,
    ShearingMistralForCausalLM,
    ShearingQwen2ForCausalLM,
    ShearingQwen3ForCausalLM,
)
from .pruning import PruneConfig, prune_interleaved, prune_one_shot
from .shapes import TargetShape
from .slicing import provenance_record, save_checkpoint, slice_model
from .sources import open_source
from .training import ShearTrainer, ShearTrainingArguments, evaluate_domains, evaluate_samples, merge_adapter

__version__ = "0.1.0"

__all__ = [
    "AutoShearingModelForCausalLM",
    "Calibration",
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
    "Teacher",
    "evaluate_domains",
    "evaluate_samples",
    "load_domains",
    "merge_adapter",
    "open_source",
    "pack_domains",
    "provenance_record",
    "prune_interleaved",
    "prune_one_shot",
    "save_checkpoint",
    "slice_model",
    "split_domains",
]
