"""Errors that training itself can end in."""

from __future__ import annotations

from ..core import FailedError


class TrainingDivergedError(FailedError):
    """The loss or a gradient became NaN or infinite; no checkpoint was written after that."""
