"""What every other package may use: errors and how they are shown."""

from .errors import FailedError, MissingExtraError, UsageError
from .one_line import DEBUG, FAILED, INTERRUPTED, OK, WRONG_USE, run_command_line

__all__ = [
    "DEBUG",
    "FAILED",
    "INTERRUPTED",
    "OK",
    "WRONG_USE",
    "FailedError",
    "MissingExtraError",
    "UsageError",
    "run_command_line",
]
