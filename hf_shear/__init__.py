"""hf_shear: make a pretrained Llama small, and strong again."""

from typing import TYPE_CHECKING

from .core.defaults import MASKED_PREFIX as _MASKED_PREFIX
from .core.lazy_names import lazy_names as _lazy_names
from .core.when_imported import when_imported as _when_imported

if TYPE_CHECKING:
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
    from .pruning import (
        NestedSizes,
        NestedTrainer,
        PruneConfig,
        nested_shapes,
        prune_interleaved,
        prune_one_shot,
        rank_nested,
    )
    from .shapes import TargetShape
    from .slicing import provenance_record, save_checkpoint, slice_model
    from .sources import open_source
    from .training import ShearTrainer, ShearTrainingArguments, evaluate_domains, evaluate_samples, merge_adapter
else:  # unseen by type checkers, to which it would allow any name
    __getattr__, __dir__ = _lazy_names(__name__)

__version__ = "0.1.0"

__all__ = [
    "AutoShearingModelForCausalLM",
    "Calibration",
    "DynamicBatchSampler",
    "MaskSettings",
    "NestedSizes",
    "NestedTrainer",
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
    "nested_shapes",
    "open_source",
    "pack_domains",
    "provenance_record",
    "prune_interleaved",
    "prune_one_shot",
    "rank_nested",
    "save_checkpoint",
    "slice_model",
    "split_domains",
]


class _WithMasked(dict):
    """Classes that are registered with transformers by model_type; those of masked models once one is asked for."""

    def __contains__(self, model_type):
        if not super().__contains__(model_type) and str(model_type).startswith(_MASKED_PREFIX):
            from . import modeling as modeling  # registers them

        return super().__contains__(model_type)


def _register_masked(auto):
    auto.CONFIG_MAPPING._extra_content = _WithMasked(auto.CONFIG_MAPPING._extra_content)


# So that transformers' own auto classes load a masked checkpoint.
_when_imported("transformers.models.auto.configuration_auto", _register_masked)
