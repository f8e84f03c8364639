"""Mask learning and recovery in the Hugging Face training loop."""

from .adapters import ADAPTER_RECORD_NAME, check_mergeable, default_peft_config, merge_adapter, save_adapter_record
from .arguments import PAPER_MASK_LEARNING, ShearTrainingArguments
from .checkpoint_room import checkpoint_bytes, checkpoints_kept
from .checks import check_domain_arguments
from .cost import evaluation_samples_per_domain
from .domain_evaluation import evaluate_domains
from .finite_guard import TrainingDivergedError
from .recovery_methods import RECOVERY_METHODS, RecoveryMethod, num_trainable, recovery_method
from .trainer import ShearTrainer
from .trainer_options import check_mask_options

__all__ = [
    "ADAPTER_RECORD_NAME",
    "PAPER_MASK_LEARNING",
    "RECOVERY_METHODS",
    "RecoveryMethod",
    "ShearTrainer",
    "ShearTrainingArguments",
    "TrainingDivergedError",
    "check_domain_arguments",
    "check_mask_options",
    "check_mergeable",
    "checkpoint_bytes",
    "checkpoints_kept",
    "default_peft_config",
    "evaluate_domains",
    "evaluation_samples_per_domain",
    "merge_adapter",
    "num_trainable",
    "recovery_method",
    "save_adapter_record",
]
