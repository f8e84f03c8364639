"""What every other package may use: errors and how they are shown, the ranges of numbers, files to write."""

from .errors import FailedError, MissingExtraError, UsageError
from .one_line import DEBUG, FAILED, INTERRUPTED, OK, WRONG_USE, run_command_line
from .output_files import check_output_file
from .printable import printable, spelled
from .ranges import FINITE, POSITIVE, RANGES, Range, check_ranges

__all__ = [
    "DEBUG",
    "FAILED",
    "FINITE",
    "INTERRUPTED",
    "OK",
    "POSITIVE",
    "RANGES",
    "WRONG_USE",
    "FailedError",
    "MissingExtraError",
    "Range",
    "UsageError",
    "check_output_file",
    "check_ranges",
    "printable",
    "run_command_line",
    "spelled",
]
