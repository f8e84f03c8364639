"""What a run leaves for its reader: the results file, the table with its verdict, and the pictures.

Everything here takes plain dicts and lists, so that it can be used on a results file alone.
"""

from hf_shear.reporting.bench_plot import plot_bench
from hf_shear.reporting.bench_table import bench_csv, bench_markdown, bench_rows
from hf_shear.reporting.html_report import html_report, write_html_report
from hf_shear.reporting.json_files import read_json_object
from hf_shear.reporting.law_plots import plot_law_curves
from hf_shear.reporting.plots import check_picture, plot_domains, plot_kept_units, plot_sizes, require_matplotlib
from hf_shear.reporting.record_types import check_record
from hf_shear.reporting.redaction import redact_command, redact_tokens
from hf_shear.reporting.results import (
    EVALUATION_NAME,
    REPORT_NAME,
    RESULTS_NAME,
    SHAPE_NAMES,
    TARGET_NAMES,
    check_results,
    collect_versions,
    model_record,
    read_results,
    write_results,
    write_text_atomically,
)
from hf_shear.reporting.table import comparison_table, markdown_table, spread_table

__all__ = [
    "EVALUATION_NAME",
    "REPORT_NAME",
    "RESULTS_NAME",
    "SHAPE_NAMES",
    "TARGET_NAMES",
    "bench_csv",
    "bench_markdown",
    "bench_rows",
    "check_picture",
    "check_record",
    "check_results",
    "collect_versions",
    "comparison_table",
    "html_report",
    "markdown_table",
    "model_record",
    "plot_bench",
    "plot_domains",
    "plot_kept_units",
    "plot_law_curves",
    "plot_sizes",
    "read_json_object",
    "read_results",
    "redact_command",
    "redact_tokens",
    "require_matplotlib",
    "spread_table",
    "write_html_report",
    "write_results",
    "write_text_atomically",
]
