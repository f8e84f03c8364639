"""Recovery of a pruned model: which weights are trained, and what a teacher adds."""

from .adapters import ADAPTER_RECORD_NAME, check_mergeable, default_peft_config, merge_adapter, save_adapter_record
from .distillation import DIVERGENCES, DistillationSettings, divergence
from .distillation_head import DistillationHead, DistillationTarget
from .flops import forward_flops_per_token, training_flops_per_token
from .sampled_digest import sampled_digest
from .teacher_logits import (
    TEACHER_IDS,
    TEACHER_LOG_PROBS,
    check_teacher_logits,
    load_teacher_logits,
    store_teacher_logits,
)
from .teachers import TEACHER_PLACEMENTS, Teacher, check_same_tokens, check_teacher
from .trainable import RECOVERY_METHODS, num_trainable, prepare_recovery

__all__ = [
    "ADAPTER_RECORD_NAME",
    "DIVERGENCES",
    "RECOVERY_METHODS",
    "TEACHER_IDS",
    "TEACHER_LOG_PROBS",
    "TEACHER_PLACEMENTS",
    "DistillationHead",
    "DistillationSettings",
    "DistillationTarget",
    "Teacher",
    "check_mergeable",
    "check_same_tokens",
    "check_teacher",
    "check_teacher_logits",
    "default_peft_config",
    "divergence",
    "forward_flops_per_token",
    "load_teacher_logits",
    "merge_adapter",
    "num_trainable",
    "prepare_recovery",
    "sampled_digest",
    "save_adapter_record",
    "store_teacher_logits",
    "training_flops_per_token",
]
