"""What a run leaves for its reader: the results file, the table with its verdict, and the pictures.

Everything here takes plain dicts and lists, so that it can be used on a results file alone.
"""

from .arms_table import comparison_table, markdown_table, spread_table
from .bench_plot import plot_bench
from .bench_table import bench_csv, bench_markdown
from .html_live import live_report
from .html_report import write_html_report
from .law_plots import plot_law_curves
from .paired import PairedDifference, paired_difference
from .plots import check_picture, plot_domains, plot_kept_units, plot_sizes, require_matplotlib
from .runs_table import runs_table, write_comparison_page
from .search_report import plot_search, search_table

__all__ = [
    "PairedDifference",
    "bench_csv",
    "bench_markdown",
    "check_picture",
    "comparison_table",
    "live_report",
    "markdown_table",
    "paired_difference",
    "plot_bench",
    "plot_domains",
    "plot_kept_units",
    "plot_law_curves",
    "plot_search",
    "plot_sizes",
    "require_matplotlib",
    "search_table",
    "runs_table",
    "spread_table",
    "write_comparison_page",
    "write_html_report",
]
