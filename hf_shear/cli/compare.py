"""``hf-shear compare``: several runs in one table and on one page."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..core import RESULTS_NAME, SAMPLE_LOSSES_NAME, UsageError, check_output_file
from .report import check_run_folder

SUMMARY = "Compare runs on one table and one page: paired losses on the same text, cost. Nothing is computed anew."
EXAMPLE = "hf-shear compare runs/001 runs/002 runs/003"
POSITIONAL = ("runs",)
MANY = True


@dataclass
class Arguments:
    runs: list[str] = field(
        metadata={"help": "Folders of two or more finished runs; the others are compared to the first."}
    )
    output: str = field(default="comparison.html", metadata={"help": "File for the page."})
    overwrite: bool = field(default=False, metadata={"help": "Replace that file."})

    def __post_init__(self):
        if len(self.runs) < 2:
            raise UsageError(
                f"`runs` must name at least two folders, but it names {' '.join(self.runs)!r}. Add another."
            )
        for folder in self.runs:
            check_run_folder("runs", folder)
        read = [Path(folder) / name for folder in self.runs for name in (RESULTS_NAME, SAMPLE_LOSSES_NAME)]
        check_output_file("output", self.output, read)
        if Path(self.output).exists() and not self.overwrite:
            raise UsageError(f"`output` {self.output!r} exists. Name another file, or replace it with `--overwrite`.")


def run(arguments: Arguments) -> None:
    """Compare, write the page, print the table."""
    from ..evaluation import compare_runs
    from ..report import runs_table, write_comparison_page

    record = compare_runs(arguments.runs)
    path = write_comparison_page(record, arguments.output)
    print(runs_table(record))
    print(f"Written: {path}")
