"""What makes up for removed units: updates of the weights that remain, before any training."""

from .add_biases import add_biases, config_with_biases
from .compensate import CompensationReport, compensate
from .methods import Compensation, resolve_compensation

__all__ = [
    "Compensation",
    "CompensationReport",
    "add_biases",
    "compensate",
    "config_with_biases",
    "resolve_compensation",
]
