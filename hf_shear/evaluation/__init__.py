"""How checkpoints are judged: loss on documents, tasks, size and speed, one alone or two side by side.

The metrics of `evaluate` are in `hf_shear.evaluation.metrics`, which needs that package to be installed.
"""

from .compare import compare_checkpoints, evaluate_checkpoint, evaluation_versions, resolve_device
from .compare_runs import compare_runs
from .document_losses import document_losses
from .evaluation_table import evaluation_table
from .perplexity import PerplexityProtocol
from .speed import SpeedProtocol, measure_speed
from .tasks import load_tasks

__all__ = [
    "PerplexityProtocol",
    "SpeedProtocol",
    "compare_checkpoints",
    "compare_runs",
    "document_losses",
    "evaluate_checkpoint",
    "evaluation_table",
    "evaluation_versions",
    "load_tasks",
    "measure_speed",
    "resolve_device",
]
