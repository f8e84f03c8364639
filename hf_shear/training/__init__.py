"""Mask learning and recovery in the Hugging Face training loop."""

from typing import TYPE_CHECKING

from ..core.lazy_names import lazy_names

if TYPE_CHECKING:
    from .adapters import check_mergeable, merge_adapter, save_adapter_record
    from .arguments import PAPER_MASK_LEARNING, ShearTrainingArguments
    from .checkpoint_room import checkpoint_bytes, checkpoints_kept
    from .checks import check_domain_arguments
    from .cost import STEERING_SAMPLES, plan_evaluations
    from .domain_evaluation import SampleLosses, evaluate_domains, evaluate_samples
    from .finite_guard import TrainingDivergedError
    from .recovery_methods import num_trainable, recovery_method
    from .trainer import ShearTrainer
    from .trainer_options import check_mask_options
else:  # unseen by type checkers, to which it would allow any name
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "PAPER_MASK_LEARNING",
    "STEERING_SAMPLES",
    "SampleLosses",
    "ShearTrainer",
    "ShearTrainingArguments",
    "TrainingDivergedError",
    "check_domain_arguments",
    "check_mask_options",
    "check_mergeable",
    "checkpoint_bytes",
    "checkpoints_kept",
    "evaluate_domains",
    "evaluate_samples",
    "merge_adapter",
    "num_trainable",
    "plan_evaluations",
    "recovery_method",
    "save_adapter_record",
]
