"""What every other package may use: errors and how they are shown, the ranges of numbers, files of the user."""

from .errors import FailedError, MissingExtraError, UsageError
from .one_line import DEBUG, FAILED, INTERRUPTED, OK, WRONG_USE, run_command_line
from .output_files import check_output_file
from .printable import printable, spelled
from .ranges import FINITE, OPTION_RANGES, POSITIVE, RANGES, Range, check_ranges
from .user_files import check_yaml_file, json_object, read_json_object, read_text, read_yaml_mapping

__all__ = [
    "DEBUG",
    "FAILED",
    "FINITE",
    "INTERRUPTED",
    "OK",
    "OPTION_RANGES",
    "POSITIVE",
    "RANGES",
    "WRONG_USE",
    "FailedError",
    "MissingExtraError",
    "Range",
    "UsageError",
    "check_output_file",
    "check_ranges",
    "check_yaml_file",
    "json_object",
    "printable",
    "read_json_object",
    "read_text",
    "read_yaml_mapping",
    "run_command_line",
    "spelled",
]
