"""Recovery of a pruned model: which weights are trained, and what a teacher adds."""

from .distillation import DistillationSettings
from .distillation_head import DistillationTarget
from .teacher_logits import (
    TEACHER_IDS,
    TEACHER_LOG_PROBS,
    check_teacher_logits,
    load_teacher_logits,
    store_teacher_logits,
)
from .teachers import TEACHER_PLACEMENTS, Teacher, check_same_tokens, check_teacher, sampled_digest

__all__ = [
    "DistillationSettings",
    "DistillationTarget",
    "TEACHER_IDS",
    "TEACHER_LOG_PROBS",
    "TEACHER_PLACEMENTS",
    "Teacher",
    "check_same_tokens",
    "check_teacher",
    "check_teacher_logits",
    "load_teacher_logits",
    "sampled_digest",
    "store_teacher_logits",
]
