"""How checkpoints are judged: loss on documents, tasks, size and speed, one alone or two side by side.

The metrics of `evaluate` are in `hf_shear.evaluation.metrics`, which needs that package to be installed.
"""

from .compare import compare_checkpoints, evaluate_checkpoint, evaluation_versions, resolve_device
from .document_losses import DocumentLosses, document_losses
from .evaluation_table import evaluation_table
from .intervals import paired_difference, ratio_of_sums
from .perplexity import PerplexityProtocol
from .size import kv_cache_bytes_per_token, size_record
from .speed import SpeedProtocol, measure_speed
from .tasks import LoadedTasks, evaluate_tasks, load_tasks

__all__ = [
    "DocumentLosses",
    "LoadedTasks",
    "PerplexityProtocol",
    "SpeedProtocol",
    "compare_checkpoints",
    "document_losses",
    "evaluate_checkpoint",
    "evaluate_tasks",
    "evaluation_table",
    "evaluation_versions",
    "kv_cache_bytes_per_token",
    "load_tasks",
    "measure_speed",
    "paired_difference",
    "ratio_of_sums",
    "size_record",
    "resolve_device",
]
