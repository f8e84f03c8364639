"""What every other package may use: errors and how they are shown, ranges, files, the lock of a run, signals."""

from .counted_flops import CountedFlops, charge_flops, counted_flops
from .counted_tokens import IGNORED_LABEL, counted_tokens, predicted_tokens
from .errors import FailedError, MissingExtraError, UsageError, of_file
from .evaluating import evaluating
from .json_files import json_object, read_json_object
from .one_line import DEBUG, OK, WRONG_USE, run_command_line
from .options import check_options, keyword_options, named_entry, options_from_text
from .output_files import check_output_file, check_parents
from .printable import printable, spelled
from .progress import BETWEEN_LINES, WORTH_TELLING, bars_are_seen, duration_text, lines_when_piped, tracked
from .ranges import FINITE, RANGES, check_ranges
from .ranks import by_main_process, count_over_ranks, is_main_process, num_processes, sum_over_ranks
from .record_types import check_record
from .redaction import redact_command, redact_tokens
from .results import (
    EVALUATION_NAME,
    REPORT_NAME,
    RESULTS_NAME,
    SAMPLE_LOSSES_NAME,
    SHAPE_NAMES,
    TARGET_NAMES,
    check_results,
    collect_versions,
    model_record,
    read_results,
    write_json_atomically,
    write_results,
    write_text_atomically,
)
from .run_lock import content_of, lock_folder, locked_result, locked_run, sign
from .signals import Noted, StoppedBySignal, leave_signals_to_parent, noted_signals, stop_of
from .user_files import check_yaml_file, read_yaml_mapping

__all__ = [
    "BETWEEN_LINES",
    "DEBUG",
    "EVALUATION_NAME",
    "CountedFlops",
    "FINITE",
    "FailedError",
    "IGNORED_LABEL",
    "MissingExtraError",
    "Noted",
    "OK",
    "RANGES",
    "REPORT_NAME",
    "RESULTS_NAME",
    "SAMPLE_LOSSES_NAME",
    "SHAPE_NAMES",
    "StoppedBySignal",
    "TARGET_NAMES",
    "UsageError",
    "WORTH_TELLING",
    "WRONG_USE",
    "bars_are_seen",
    "by_main_process",
    "charge_flops",
    "check_options",
    "check_output_file",
    "check_parents",
    "check_ranges",
    "check_record",
    "check_results",
    "check_yaml_file",
    "collect_versions",
    "content_of",
    "count_over_ranks",
    "counted_flops",
    "counted_tokens",
    "duration_text",
    "evaluating",
    "is_main_process",
    "json_object",
    "keyword_options",
    "leave_signals_to_parent",
    "lines_when_piped",
    "lock_folder",
    "locked_result",
    "locked_run",
    "model_record",
    "named_entry",
    "noted_signals",
    "num_processes",
    "of_file",
    "options_from_text",
    "predicted_tokens",
    "printable",
    "read_json_object",
    "read_results",
    "read_yaml_mapping",
    "redact_command",
    "redact_tokens",
    "run_command_line",
    "sign",
    "spelled",
    "stop_of",
    "sum_over_ranks",
    "tracked",
    "write_json_atomically",
    "write_results",
    "write_text_atomically",
]
