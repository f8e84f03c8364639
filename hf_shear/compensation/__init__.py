"""What makes up for removed units: updates of the weights that remain, before any training."""

from .compensate import COMPENSATIONS, CompensationReport, compensate

__all__ = ["COMPENSATIONS", "CompensationReport", "compensate"]
