"""``hf-shear report``: one HTML file that shows a whole run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..core import EVALUATION_NAME, RESULTS_NAME, UsageError, check_output_file

SUMMARY = "Show a run on one page: what was kept, losses, comparison, speed. One HTML file, no network."
EXAMPLE = "hf-shear report runs/001"
POSITIONAL = ("run_folder",)
_STAGES = {
    "the judging of the source": {"source"},
    "the cut": {"mask_learning", "pruning", "pruned_checkpoint"},
    "recovery": {"recovery"},
}
"""What every run goes through, and by which stages; baselines may follow."""

_GO_ON = "Go on with it by the same command (with `--resume`, except `hf-shear recover`)"


@dataclass
class Arguments:
    run_folder: str = field(metadata={"help": f"Folder of a finished run, with {RESULTS_NAME}."})
    output: str | None = field(default=None, metadata={"help": "File to write; RUN_FOLDER/report.html if not named."})

    def __post_init__(self):
        folder = check_run_folder("run_folder", self.run_folder)
        if self.output is not None:
            check_output_file("output", self.output, [folder / name for name in (RESULTS_NAME, EVALUATION_NAME)])


def check_run_folder(argument: str, folder: str) -> Path:
    """The folder of a finished run that an argument names.

    Raises:
        UsageError: there is no such folder, or it holds no results; the text says what is left to do.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UsageError(
            f"`{argument}` must be the folder of a run, but {folder!r} is no folder. Name the `--output_dir` of a run."
        )
    if not (path / RESULTS_NAME).is_file():
        raise UsageError(f"`{argument}` {folder!r} holds no {RESULTS_NAME}: {_why_no_results(path)}")
    return path


def _why_no_results(folder: Path) -> str:
    from ..runs import finished_stages

    finished = finished_stages(folder)
    if finished is None:
        return "no run wrote there. Name the `--output_dir` of a run."
    missing = [name for name, stages in _STAGES.items() if not stages & set(finished)]
    if missing:
        return f"its run has not finished {', '.join(missing)}. {_GO_ON}; it writes them at its end."
    return f"its stages are finished, but not its baselines or its last step. {_GO_ON}."


def run(arguments: Arguments) -> None:
    """Write the report and print where it is."""
    from ..report import write_html_report

    print(write_html_report(arguments.run_folder, arguments.output))
