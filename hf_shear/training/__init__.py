"""Mask learning and recovery in the Hugging Face training loop."""

from .arguments import ShearTrainingArguments
from .checkpoint_room import checkpoint_bytes, checkpoints_kept
from .checks import check_domain_arguments
from .domain_evaluation import evaluate_domains
from .errors import TrainingDivergedError
from .history import EvaluationLog
from .interleaved import PRUNING_SHARE, InterleavedTrainer, pruning_steps
from .paper_recipe import PAPER_MASK_LEARNING
from .trainer import ShearTrainer
from .trainer_options import check_mask_options

__all__ = [
    "PAPER_MASK_LEARNING",
    "PRUNING_SHARE",
    "EvaluationLog",
    "InterleavedTrainer",
    "ShearTrainer",
    "ShearTrainingArguments",
    "TrainingDivergedError",
    "check_domain_arguments",
    "check_mask_options",
    "checkpoint_bytes",
    "checkpoints_kept",
    "evaluate_domains",
    "pruning_steps",
]
