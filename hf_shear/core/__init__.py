"""What every other package may use: errors and how they are shown, ranges, files, the lock of a run, signals."""

from .errors import FailedError, MissingExtraError, UsageError, of_file
from .main_process import by_main_process, is_main_process, num_processes
from .one_line import DEBUG, OK, WRONG_USE, run_command_line
from .output_files import check_output_file, check_parents
from .printable import printable, spelled
from .ranges import FINITE, OPTION_RANGES, RANGES, Range, check_ranges
from .run_lock import content_of, lock_folder, locked_result, locked_run, sign
from .signals import Noted, StoppedByKeyboard, StoppedBySignal, leave_signals_to_parent, noted_signals, stop_of
from .user_files import check_yaml_file, json_object, read_json_object, read_text, read_yaml_mapping

__all__ = [
    "DEBUG",
    "FINITE",
    "FailedError",
    "MissingExtraError",
    "Noted",
    "OK",
    "OPTION_RANGES",
    "RANGES",
    "Range",
    "StoppedByKeyboard",
    "StoppedBySignal",
    "UsageError",
    "WRONG_USE",
    "by_main_process",
    "check_output_file",
    "check_parents",
    "check_ranges",
    "check_yaml_file",
    "content_of",
    "is_main_process",
    "json_object",
    "leave_signals_to_parent",
    "lock_folder",
    "locked_result",
    "locked_run",
    "noted_signals",
    "num_processes",
    "printable",
    "of_file",
    "read_json_object",
    "read_text",
    "read_yaml_mapping",
    "run_command_line",
    "sign",
    "spelled",
    "stop_of",
]
