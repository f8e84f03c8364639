"""What makes up for removed units: updates of the weights that remain, before any training."""

from .add_biases import add_biases, config_with_biases
from .choose import COMPENSATIONS, SOURCE, Compensation, check_compensation, reads_own_inputs, resolve_compensation
from .compensate import CompensationReport, compensate

__all__ = [
    "COMPENSATIONS",
    "SOURCE",
    "Compensation",
    "CompensationReport",
    "add_biases",
    "check_compensation",
    "compensate",
    "config_with_biases",
    "reads_own_inputs",
    "resolve_compensation",
]
